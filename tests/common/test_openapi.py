import json
import re
from html.parser import HTMLParser

import aiohttp
import pytest
from pydantic import BaseModel, Field

from storage_proxy.common.errors import StorageUnavailable
from storage_proxy.common.service.docs_page import DocumentHandlers, docs_page
from storage_proxy.common.service.endpoints import endpoint, endpoints_of
from storage_proxy.common.service.openapi import openapi_document


class Item(BaseModel):
    name: str
    weight: int | None = None


class Order(BaseModel):
    """What is wanted."""

    items: list[Item] = Field(description="<script>alert('x')</script>")
    note: str = Field(default="<b>none</b>", description="A `word` for us.")


class Wanted(BaseModel):
    order: int = Field(description="Its number.")


class Page(BaseModel):
    cursor: str | None = Field(default=None, description="Where it goes on.")


class Nothing(BaseModel):
    pass


class Shop:
    @endpoint("POST", "/orders", status=201, errors=(StorageUnavailable,))
    async def order(self, body: Order) -> Item:
        """Order & wait."""
        return body.items[0]

    @endpoint("GET", "/orders/{order}")
    async def show(self, path: Wanted) -> Order:
        """Show."""
        raise NotImplementedError

    @endpoint("GET", "/orders/{order}/items")
    async def items(self, path: Wanted, query: Page) -> Order:
        """List."""
        raise NotImplementedError

    @endpoint("POST", "/orders/{order}/send")
    async def send(self, path: Wanted, body: Nothing) -> Item:
        """Send."""
        raise NotImplementedError

    @endpoint("GET", "/open")
    async def open(self) -> None:
        """For everyone."""


@pytest.fixture
def document() -> dict:
    groups = {"Orders": endpoints_of(Shop())}
    return openapi_document(groups, title="A <Shop>", version="1", description="d", open_paths={"/open"})


def test_the_document_says_what_the_code_takes_and_gives(document: dict) -> None:
    order = document["paths"]["/orders"]["post"]
    assert document["openapi"] == "3.1.0"
    assert order["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Order"}
    assert order["responses"]["201"]["content"]["application/json"]["schema"]["$ref"].endswith("/Item")
    assert order["security"] == [{"bearer": []}]
    assert document["paths"]["/open"]["get"]["security"] == []
    (parameter,) = document["paths"]["/orders/{order}"]["get"]["parameters"]
    assert (parameter["name"], parameter["in"], parameter["required"]) == ("order", "path", True)
    assert document["components"]["schemas"]["Order"]["properties"]["items"]["items"]["$ref"].endswith("/Item")


def test_every_error_is_documented_with_its_codes(document: dict) -> None:
    responses = document["paths"]["/orders"]["post"]["responses"]
    codes = {
        status: response["content"]["application/problem+json"]["schema"]["allOf"][1]["properties"]["code"]["enum"]
        for status, response in responses.items()
        if status >= "400"
    }
    assert codes == {
        "400": ["invalid-request"],
        "401": ["unauthorized"],
        "413": ["payload-too-large"],
        "415": ["unsupported-media-type"],
        "500": ["internal"],
        "503": ["storage-unavailable"],
    }
    assert "Retry-After" in responses["503"]["headers"]


def test_every_reference_of_the_document_leads_somewhere(document: dict) -> None:
    names = re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document))
    assert names
    assert set(names) <= document["components"]["schemas"].keys()


def test_operations_have_ids_of_their_own(document: dict) -> None:
    ids = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert ids == ["post_orders", "get_orders_order", "get_orders_order_items", "post_orders_order_send", "get_open"]


def test_a_body_without_fields_may_be_left_out(document: dict) -> None:
    assert document["paths"]["/orders"]["post"]["requestBody"]["required"] is True
    assert document["paths"]["/orders/{order}/send"]["post"]["requestBody"]["required"] is False


def test_the_parameters_of_a_path_come_first(document: dict) -> None:
    parameters = document["paths"]["/orders/{order}/items"]["get"]["parameters"]
    assert [(each["name"], each["in"]) for each in parameters] == [("order", "path"), ("cursor", "query")]


class Shown(HTMLParser):
    """What a browser would see: the tags, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_operations_fields_answers_and_an_example(document: dict) -> None:
    text = Shown(docs_page(document)).text
    for shown in (
        "/orders/{order}",
        "items[].weight",
        "Order & wait.",
        "storage-unavailable",
        "list of object",
        "A word for us.",
    ):
        assert shown in text
    assert 'curl -sS -X POST "$API/orders"' in text
    assert """-d '{"items": []}'""" in text


def test_an_example_has_no_parameter_of_the_path_in_its_query(document: dict) -> None:
    text = Shown(docs_page(document)).text
    assert 'curl -sS "$API/orders/…"' in text
    assert 'curl -sS "$API/orders/…/items"' in text
    assert "{order}/items?" not in text


def test_an_example_has_no_body_where_none_is_needed(document: dict) -> None:
    text = Shown(docs_page(document)).text
    assert text.count("-d '") == 1


def test_a_parameter_is_never_null(document: dict) -> None:
    assert (
        "string or null" not in Shown(docs_page({**document, "paths": _only(document, "/orders/{order}/items")})).text
    )


def _only(document: dict, path: str) -> dict:
    operation = dict(document["paths"][path]["get"], responses={})
    return {path: {"get": operation}}


def test_the_page_escapes_every_text(document: dict) -> None:
    page = Shown(docs_page(document))
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "b", "img", "iframe", "form", "shop"})
    assert "<script>alert('x')</script>" in page.text
    assert "<b>none</b>" in page.text


def test_the_page_loads_nothing(document: dict) -> None:
    for tag, attributes in Shown(docs_page(document)).tags:
        assert "src" not in attributes
        assert "style" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        if tag == "link":
            assert attributes["href"] == "data:,"


async def test_the_page_may_use_its_own_style_and_nothing_else(
    start, client: aiohttp.ClientSession, document: dict
) -> None:
    listener = await start(more=DocumentHandlers(document))
    async with client.get(f"http://{listener.address}/docs") as answer:
        policy = answer.headers["Content-Security-Policy"]
        assert answer.content_type == "text/html"
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        assert "unsafe" not in policy
    async with client.get(f"http://{listener.address}/openapi.json") as answer:
        assert await answer.json() == json.loads(json.dumps(document))
