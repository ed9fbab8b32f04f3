import json
import logging

import aiohttp
import pytest
from aiohttp import web

from storage_proxy.common.service.endpoints import endpoint
from storage_proxy.common.service.middleware import CALLER, require_bearer


@pytest.fixture
async def url(start) -> str:
    return f"http://{(await start()).address}"


async def test_every_answer_has_a_request_id_of_its_own(client: aiohttp.ClientSession, url: str) -> None:
    seen = set()
    for path in ("/nothing", "/missing", "/no-such-path", "/nothing"):
        async with client.get(url + path) as answer:
            seen.add(answer.headers["X-Request-Id"])
    assert len(seen) == 4


@pytest.mark.parametrize("given", ["a", "Id-1._x", "x" * 128])
async def test_a_valid_request_id_is_kept(client: aiohttp.ClientSession, url: str, given: str) -> None:
    async with client.get(f"{url}/missing", headers={"X-Request-Id": given}) as answer:
        assert answer.headers["X-Request-Id"] == given
        assert (await answer.json(content_type=None))["request_id"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "é", "a;b", '"><script>'])
async def test_another_request_id_is_replaced(client: aiohttp.ClientSession, url: str, given: str) -> None:
    async with client.get(f"{url}/missing", headers={"X-Request-Id": given}) as answer:
        assert answer.headers["X-Request-Id"] != given
        assert (await answer.json(content_type=None))["request_id"] == answer.headers["X-Request-Id"]


async def test_an_error_is_a_problem_with_its_retry_after(client: aiohttp.ClientSession, url: str) -> None:
    async with client.get(f"{url}/missing") as answer:
        assert answer.status == 404
        assert answer.content_type == "application/problem+json"
        assert answer.headers["Retry-After"] == "7"
        problem = await answer.json(content_type=None)
    assert (problem["code"], problem["detail"], problem["status"]) == ("blob-not-found", "it is not there", 404)


async def test_an_unknown_path_is_404_not_found(client: aiohttp.ClientSession, url: str) -> None:
    async with client.get(f"{url}/no-such-path") as answer:
        assert (answer.status, (await answer.json(content_type=None))["code"]) == (404, "not-found")


@pytest.mark.parametrize(("method", "path", "allow"), [("DELETE", "/query", "GET, HEAD"), ("GET", "/echo", "POST")])
async def test_another_method_is_405_and_names_those_allowed(
    client: aiohttp.ClientSession, url: str, method: str, path: str, allow: str
) -> None:
    async with client.request(method, url + path) as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, allow)
        assert (await answer.json(content_type=None))["code"] == "method-not-allowed"


async def test_a_defect_shows_nothing_and_is_logged_with_its_request_id(
    client: aiohttp.ClientSession, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with client.get(f"{url}/broken?token=my-secret", headers={"X-Request-Id": "r1"}) as answer:
        text = await answer.text()
    problem = json.loads(text)
    assert (answer.status, problem["code"], problem["request_id"]) == (500, "internal", "r1")
    assert "a-private-message" not in text
    assert "RuntimeError" not in text
    (logged,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert logged.exc_info is not None
    assert vars(logged)["request_id"] == "r1"
    assert "my-secret" not in caplog.text


async def test_a_defect_after_the_first_byte_cuts_the_connection(client: aiohttp.ClientSession, url: str) -> None:
    async with client.get(f"{url}/breaks-late") as answer:
        assert answer.status == 200
        with pytest.raises(aiohttp.ClientError):
            await answer.read()


class Hall:
    @endpoint("GET", "/who")
    async def who(self, request: web.Request) -> web.Response:
        """Who asks."""
        return web.Response(text=request[CALLER])

    @endpoint("GET", "/open")
    async def open(self) -> web.Response:
        """For everyone."""
        return web.Response(text="open")


@pytest.fixture
async def guarded(start) -> str:
    keys = {"one": "secret-1", "two": "secret-2"}
    return f"http://{(await start(require_bearer(keys, open_paths=frozenset({'/open'})), more=Hall())).address}"


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Basic secret-1",
        "secret-1",
        "Bearer secret-1x",
        "Bearer sécret",
        "Bearer \udcff",
    ],
)
async def test_without_a_valid_key_everything_is_401(
    client: aiohttp.ClientSession, guarded: str, header: str | None
) -> None:
    headers = {} if header is None else {"Authorization": header}
    for path in ("/nothing", "/no-such-path", "/missing"):
        async with client.get(guarded + path, headers=headers) as answer:
            assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert (await answer.json(content_type=None))["code"] == "unauthorized"


@pytest.mark.parametrize(
    ("header", "name"), [("Bearer secret-1", "one"), ("bearer secret-2", "two"), ("Bearer  secret-1 ", "one")]
)
async def test_any_of_the_keys_opens_and_names_the_caller(
    client: aiohttp.ClientSession, guarded: str, header: str, name: str
) -> None:
    async with client.get(f"{guarded}/who", headers={"Authorization": header}) as answer:
        assert await answer.text() == name


async def test_an_open_path_needs_no_key(client: aiohttp.ClientSession, guarded: str) -> None:
    async with client.get(f"{guarded}/open") as answer:
        assert answer.status == 200
