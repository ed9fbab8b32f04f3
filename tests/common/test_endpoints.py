import aiohttp
import pytest
from aiohttp import web
from pydantic import BaseModel

from storage_proxy.common.service import endpoints
from storage_proxy.common.service.endpoints import endpoint, endpoints_of
from storage_proxy.common.service.listener import Listener

JSON = {"Content-Type": "application/json"}


@pytest.fixture
async def url(start) -> str:
    listener: Listener = await start(max_body_bytes=10_000)
    return f"http://{listener.address}"


async def posted(
    client: aiohttp.ClientSession, url: str, body: bytes, headers: dict[str, str] = JSON
) -> tuple[int, dict]:
    async with client.post(f"{url}/echo", data=body, headers=headers) as answer:
        return answer.status, await answer.json(content_type=None)


async def test_a_body_is_parsed_before_the_handler_and_its_answer_after(
    client: aiohttp.ClientSession, url: str
) -> None:
    assert await posted(client, url, b'{"text": "a"}') == (201, {"text": "a", "number": 1})


@pytest.mark.parametrize(
    ("body", "loc"),
    [
        (b"", []),
        (b"{", []),
        (b"[]", []),
        (b"null", []),
        (b"\xff", []),
        (b"[" * 5000, []),
        (b"{}", ["text"]),
        (b'{"text": 5}', ["text"]),
        (b'{"text": "a", "number": "many"}', ["number"]),
        (b'{"text": "a", "nope": 1}', ["nope"]),
        (b'{"text": "a", "number": ' + b"9" * 5000 + b"}", []),
    ],
)
async def test_a_body_that_the_model_refuses_is_an_invalid_request_that_says_where(
    client: aiohttp.ClientSession, url: str, body: bytes, loc: list[str]
) -> None:
    status, problem = await posted(client, url, body)
    assert (status, problem["code"]) == (400, "invalid-request")
    assert problem["errors"][0]["loc"] == loc


@pytest.mark.parametrize("body", [b'{"text": "\\ud800"}', b'{"\\udfff": 1, "text": "\\udfff"}'])
async def test_a_lone_surrogate_is_an_unsafe_name(client: aiohttp.ClientSession, url: str, body: bytes) -> None:
    status, problem = await posted(client, url, body)
    assert (status, problem["code"]) == (400, "unsafe-name")


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": ""},
        JSON | {"Content-Encoding": "gzip"},
    ],
)
async def test_a_body_of_another_kind_is_415(client: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> None:
    status, problem = await posted(client, url, b'{"text": "a"}', headers)
    assert (status, problem["code"]) == (415, "unsupported-media-type")


async def test_a_body_over_the_limit_is_413(client: aiohttp.ClientSession, url: str) -> None:
    status, problem = await posted(client, url, b'{"text": "' + b"a" * 20_000 + b'"}')
    assert (status, problem["code"]) == (413, "payload-too-large")


async def test_a_query_is_parsed(client: aiohttp.ClientSession, url: str) -> None:
    async with client.get(f"{url}/query", params={"text": "a b/é", "number": "5"}) as answer:
        assert await answer.json() == {"text": "a b/é", "number": 5}


@pytest.mark.parametrize("query", ["text=a&text=a", "text=a&nope=1", "number=1", "text=a&number=x", ""])
async def test_a_query_that_the_model_refuses_is_an_invalid_request(
    client: aiohttp.ClientSession, url: str, query: str
) -> None:
    async with client.get(f"{url}/query?{query}") as answer:
        assert (answer.status, (await answer.json(content_type=None))["code"]) == (400, "invalid-request")


async def test_a_path_is_parsed(client: aiohttp.ClientSession, url: str) -> None:
    async with client.get(f"{url}/shelves/5") as answer:
        assert await answer.json() == {"shelf": 5}
    async with client.get(f"{url}/shelves/five") as answer:
        assert (await answer.json(content_type=None))["errors"][0]["loc"] == ["shelf"]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (None, {}, 204),
        (b"", {"Content-Type": "application/x-www-form-urlencoded"}, 204),
        (b"{}", JSON, 204),
        (b'{"nope": 1}', JSON, 400),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b" ", JSON, 400),
    ],
)
async def test_a_body_without_fields_may_be_empty(
    client: aiohttp.ClientSession, url: str, body: bytes | None, headers: dict[str, str], status: int
) -> None:
    async with client.post(f"{url}/knock", data=body, headers=headers) as answer:
        assert answer.status == status


async def test_no_answer_is_204(client: aiohttp.ClientSession, url: str) -> None:
    async with client.get(f"{url}/nothing") as answer:
        assert (answer.status, await answer.read()) == (204, b"")


async def test_a_get_answers_head_with_the_same_headers_and_no_body(client: aiohttp.ClientSession, url: str) -> None:
    async with client.get(f"{url}/query?text=a") as whole, client.head(f"{url}/query?text=a") as head:
        assert (head.status, head.headers["Content-Length"]) == (200, whole.headers["Content-Length"])
        assert await head.read() == b""


class Odd:
    @endpoint("GET", "/odd")
    async def odd(self, wish: BaseModel) -> None:
        """Asks for what nobody provides."""


class Claiming:
    @endpoint("GET", "/claiming")
    async def claiming(self, claims: BaseModel) -> web.Response:
        """Asks for claims."""
        raise NotImplementedError


@pytest.mark.parametrize("handlers", [Odd(), Claiming()])
def test_a_handler_that_asks_for_what_there_is_not_is_refused_at_start(handlers: object) -> None:
    with pytest.raises(TypeError, match="asks for"):
        endpoints_of(handlers)


async def test_a_body_of_too_many_values_is_refused_before_it_is_parsed(
    client: aiohttp.ClientSession, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "MAX_JSON_VALUES", 1000)
    status, problem = await posted(client, url, b'{"text": "a", "number": [' + b"1," * 1100 + b"1]}")
    assert (status, problem["code"]) == (413, "payload-too-large")
