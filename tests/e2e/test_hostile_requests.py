"""Whatever a stranger or a careless caller sends to the running programs is refused with the contract's code; nothing
is a 500, nothing ends a process, nothing of it is in a log.
"""

import asyncio
import base64
import hmac
import io
import json
import time
import tomllib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import jwt
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.programs import API_KEY, RPC_SECRET, TOKEN_SECRET, Service, free_ports, service
from tests.support.raw_http import Answer, Connection, exchange, request

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1 << 20
SURROGATE = "\ud800"
UNSAFE = {
    "parent": "../secret",
    "parent inside": "a/../../secret",
    "parent at the end": "a/..",
    "dot": "./a",
    "absolute": "/etc/passwd",
    "backslash": "a\\b",
    "backslash parent": "..\\secret",
    "NUL": "a\0b",
    "newline": "a\nb",
    "C1 control": "a\u0085b",
    "empty": "",
    "lone high surrogate": f"a{SURROGATE}b",
    "lone low surrogate": "a\udfff",
}
UNSAFE_KEYS = UNSAFE | {"over-long": "k/" * 600 + "k", "over-long in bytes": "é" * 600}
UNSAFE_NAMES = UNSAFE | {
    "over-long": "n/" * 2100 + "n",
    "over-long part": "n" * 256,
    "over-long part in bytes": "é" * 128,
    "empty part": "a//b",
    "drive": "C:x",
    "drive and slash": "c:/x",
    "two slashes at the end": "a//",
}


@dataclass
class Ground:
    """The running programs, a client for them, and every credential that has been sent to them."""

    service: Service
    http: aiohttp.ClientSession
    root: Path
    rpc_url: str
    credentials: list[str] = field(default_factory=list, repr=False)

    @property
    def manager(self) -> str:
        return self.service.manager_url

    @property
    def client(self) -> str:
        return self.service.client_urls[0]

    @property
    def operations(self) -> str:
        return self.service.proxies[0].health_url

    @property
    def listeners(self) -> dict[str, str]:
        return {"manager": self.manager, "client": self.client, "rpc": self.rpc_url, "operations": self.operations}

    async def ask(self, method: str, url: str, *, body: bytes | None = None, **headers: str) -> Answer:
        """Ask as an authorised caller."""
        secret = RPC_SECRET if url.startswith(self.rpc_url) else API_KEY
        given = {"Authorization": f"Bearer {secret}", **headers}
        if body is not None:
            given.setdefault("Content-Type", "application/json")
        if url.startswith(self.client) and "Authorization" not in headers:
            del given["Authorization"]
        data = None if body is None else io.BytesIO(body)  # aiohttp wants large bodies as files
        async with self.http.request(method, url, data=data, headers=given, allow_redirects=False) as answer:
            lower = {name.lower(): value for name, value in answer.headers.items()}
            return Answer(answer.status, lower, await answer.read())

    async def post(self, path: str, body: object, *, base: str = "") -> Answer:
        return await self.ask("POST", (base or self.manager) + path, body=json.dumps(body).encode())

    async def download(self, token: str, route: str = "download", method: str = "GET") -> Answer:
        self.credentials.append(token)
        return await self.ask(method, f"{self.client}/{route}?token={quote(token, safe='')}")

    async def mint(self, kind: str, body: object) -> dict[str, Any]:
        minted = await self.service.mint(kind, body)
        self.credentials.append(minted["token"])
        return minted

    async def works(self) -> None:
        """Every process is the one that was started, and does its work."""
        for program in self.service.programs:
            assert program.process is not None
            assert program.process.returncode is None, program.log.read_text()
        for url in (self.manager, self.client, self.operations):
            assert (await self.ask("GET", f"{url}/health/live")).status == 200
        minted = await self.mint("blob", {"key": "a/one.txt"})
        assert (await self.download(minted["token"])).body == b"one\n"


@asynccontextmanager
async def ground_over(
    directory: Path, buckets: Mapping[str, Mapping[str, object]], root: Path
) -> AsyncIterator[Ground]:
    async with service(directory, buckets) as running, aiohttp.ClientSession() as http:
        proxy = tomllib.loads(running.proxies[0].config.read_text())
        yield Ground(running, http, root, f"http://{proxy['rpc']['listen']}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ground(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ground]:
    directory = tmp_path_factory.mktemp("hostile")
    root = directory / "blobs"
    (root / "a").mkdir(parents=True)
    (root / "a/one.txt").write_text("one\n")
    (root / "a/two.txt").write_text("two\n")
    (directory / "secret").write_text("outside of the bucket\n")
    async with ground_over(directory / "programs", {"default": {"kind": "local", "root": str(root)}}, root) as made:
        yield made
        await made.works()


def refused(answer: Answer, status: int, code: str, *where: object) -> dict[str, Any]:
    """``answer`` is this refusal and, where ``where`` is given, its errors name this place."""
    problem = answer.problem()
    assert (answer.status, problem["code"]) == (status, code), problem
    if where:
        assert list(where) in [error["loc"] for error in problem["errors"]], problem
        assert all(error["msg"] for error in problem["errors"]), problem
    return problem


# Names and keys


@pytest.mark.parametrize("key", UNSAFE_KEYS.values(), ids=UNSAFE_KEYS)
async def test_an_unsafe_key_is_refused_by_every_way_in(ground: Ground, key: str) -> None:
    refused(await ground.post("/v1/tokens/blob", {"key": key}), 400, "unsafe-name", "key")
    body = {"entries": [{"key": "missing"}, {"key": key}]}
    refused(await ground.post("/v1/tokens/archive", body), 400, "unsafe-name", "entries", 1, "key")
    refused(await ground.post("/rpc/v1/archives", body, base=ground.rpc_url), 400, "unsafe-name", "entries", 1, "key")
    body = {"entries": [{"key": key, "name": "fine"}]}
    refused(await ground.post("/v1/tokens/archive", body), 400, "unsafe-name", "entries", 0, "key")


@pytest.mark.parametrize("key", UNSAFE_KEYS.values(), ids=UNSAFE_KEYS)
async def test_an_unsafe_key_in_a_query_is_refused(ground: Ground, key: str) -> None:
    escaped = quote(key.encode("utf-8", "surrogatepass"), safe="")
    for base, path in ((ground.manager, "/v1/blobs"), (ground.rpc_url, "/rpc/v1/blobs")):
        secret = RPC_SECRET if base == ground.rpc_url else API_KEY
        message = request("GET", f"{path}?bucket=default&key={escaped}", f"Authorization: Bearer {secret}")
        answer = await exchange(base, message)
        assert answer is not None
        refused(answer, 400, "unsafe-name", "key")


@pytest.mark.parametrize("name", UNSAFE_NAMES.values(), ids=UNSAFE_NAMES)
async def test_an_unsafe_name_is_refused(ground: Ground, name: str) -> None:
    body = {"entries": [{"key": "missing"}, {"key": "a/one.txt", "name": name}], "names": "exact"}
    refused(await ground.post("/v1/tokens/archive", body), 400, "unsafe-name", "entries", 1, "name")
    refused(await ground.post("/rpc/v1/archives", body, base=ground.rpc_url), 400, "unsafe-name", "entries", 1, "name")


@pytest.mark.parametrize("prefix", ["../", "a/../", "/", "/a/", "a\\/", "a\0/", f"{SURROGATE}/", "p/" * 600, "./"])
async def test_an_unsafe_prefix_is_refused(ground: Ground, prefix: str) -> None:
    refused(await ground.post("/v1/tokens/archive", {"prefix": prefix}), 400, "unsafe-name", "prefix")


@pytest.mark.parametrize(
    "filename", ["", "a/b", "f" * 256, "a\0", "a\r\nX-Injected: 1", "\x85", SURROGATE, "../x", "/"]
)
async def test_an_unsafe_filename_is_refused(ground: Ground, filename: str) -> None:
    for kind, selected in (("blob", {"key": "a/one.txt"}), ("archive", {"prefix": ""})):
        answer = await ground.post(f"/v1/tokens/{kind}", {**selected, "filename": filename})
        problem = answer.problem()
        assert answer.status == 400, problem
        assert problem["code"] in ("unsafe-name", "invalid-request"), problem
        assert ["filename"] in [error["loc"] for error in problem["errors"]], problem


async def test_all_that_is_unsafe_is_told_at_once(ground: Ground) -> None:
    keys = [key for name, key in UNSAFE_KEYS.items() if "surrogate" not in name]
    answer = await ground.post("/v1/tokens/archive", {"entries": [{"key": key} for key in keys]})
    told = [error["loc"] for error in refused(answer, 400, "unsafe-name")["errors"]]
    assert told == [["entries", index, "key"] for index in range(len(keys))]


async def test_a_refusal_comes_before_anything_is_read(tmp_path: Path) -> None:
    """A store that is away would answer 503: what is refused does not even ask it."""
    dead = {
        "kind": "s3",
        "endpoint": f"http://127.0.0.1:{free_ports(1)[0]}",
        "bucket": "away",
        "access_key": "x",
        "secret_key": "y",
        "connect_timeout_seconds": 1.0,
        "max_attempts": 1,
    }
    async with ground_over(tmp_path, {"default": dead}, tmp_path) as ground:
        answer = await ground.post("/v1/tokens/blob", {"key": "a"})
        refused(answer, 503, "storage-unavailable")
        assert int(answer.headers["retry-after"]) > 0
        for key in UNSAFE_KEYS.values():
            refused(await ground.post("/v1/tokens/blob", {"key": key}), 400, "unsafe-name")
            body = {"entries": [{"key": "a"}, {"key": key}]}
            refused(await ground.post("/v1/tokens/archive", body), 400, "unsafe-name")
        for name in UNSAFE_NAMES.values():
            body = {"entries": [{"key": "a"}, {"key": "b", "name": name}]}
            refused(await ground.post("/v1/tokens/archive", body), 400, "unsafe-name")
        for key in ("../x", "a\\b", "", SURROGATE):
            token = signed(claims(key=key))
            refused(await ground.download(token), 400, "unsafe-name" if key and key != SURROGATE else "invalid-request")
        files = signed(archive_claims(files=[{"key": "a", "name": "a"}, {"key": "../x", "name": "x"}]))
        refused(await ground.download(files, "download-archive"), 400, "unsafe-name")


@pytest.mark.parametrize("key", [".storage-proxy/manifests/x", ".storage-proxy/", "a/.storage-proxy/x"])
async def test_what_the_service_keeps_for_itself_does_not_exist(ground: Ground, key: str) -> None:
    await ground.mint("archive", {"prefix": ""})  # its manifest is there now
    refused(await ground.post("/v1/tokens/blob", {"key": key}), 404, "blob-not-found")
    refused(await ground.post("/v1/tokens/archive", {"entries": [{"key": key}]}), 404, "blob-not-found")
    refused(await ground.post("/v1/tokens/archive", {"prefix": ".storage-proxy/"}), 404, "blob-not-found")
    refused(await ground.download(signed(claims(key=key))), 404, "blob-not-found")


async def test_a_symbolic_link_out_of_the_bucket_is_not_followed(ground: Ground) -> None:
    (ground.root / "link.txt").symlink_to("../secret")
    (ground.root / "folder").symlink_to("..")
    for key in ("link.txt", "folder/secret"):
        refused(await ground.post("/v1/tokens/blob", {"key": key}), 404, "blob-not-found")
        refused(await ground.download(signed(claims(key=key))), 404, "blob-not-found")
    minted = await ground.mint("archive", {"prefix": ""})
    assert b"outside of the bucket" not in (await ground.download(minted["token"], "download-archive")).body


# What does not exist


@pytest.mark.parametrize("missing", [1, 3, 150, 5000])
async def test_all_the_missing_are_listed(ground: Ground, missing: int) -> None:
    entries = [{"key": "a/one.txt"}, *({"key": f"none/{index}"} for index in range(missing)), {"key": "a/two.txt"}]
    problem = refused(await ground.post("/v1/tokens/archive", {"entries": entries}), 404, "blob-not-found")
    assert [error["loc"] for error in problem["errors"]] == [["entries", i, "key"] for i in range(1, missing + 1)]
    assert [error["key"] for error in problem["errors"]] == [f"none/{index}" for index in range(missing)]


async def test_a_blob_or_bucket_that_does_not_exist_is_404(ground: Ground) -> None:
    refused(await ground.post("/v1/tokens/blob", {"key": "none"}), 404, "blob-not-found")
    refused(await ground.ask("GET", f"{ground.manager}/v1/blobs?key=none"), 404, "blob-not-found")
    refused(await ground.post("/v1/tokens/archive", {"prefix": "none/"}), 404, "blob-not-found")
    for bucket in ("none", "NONE", "../default", "", "\0"):
        answer = await ground.post("/v1/tokens/blob", {"bucket": bucket, "key": "a/one.txt"})
        refused(answer, 404, "bucket-not-found")
    answer = await ground.post("/v1/tokens/archive", {"entries": [{"key": "a", "bucket": "none"}]})
    refused(answer, 404, "bucket-not-found")
    refused(await ground.download(signed(claims(bucket="none"))), 404, "bucket-not-found")
    unkept = signed(archive_claims(manifest="sha256:" + "0" * 64))
    refused(await ground.download(unkept, "download-archive"), 404, "blob-not-found")


# Bodies


async def test_an_empty_list_is_refused_at_its_place(ground: Ground) -> None:
    refused(await ground.post("/v1/tokens/archive", {"entries": []}), 400, "invalid-request", "entries")


async def test_100001_entries_are_too_many(ground: Ground) -> None:
    body = {"entries": [{"key": f"k{index}"} for index in range(100_001)]}
    refused(await ground.post("/v1/tokens/archive", body), 413, "selection-too-large", "entries")


@pytest.mark.parametrize("path", ["/v1/tokens/archive", "/v1/tokens/blob"])
async def test_a_body_of_50_mb_is_too_large(ground: Ground, path: str) -> None:
    entry = b'{"key": "' + b"k" * 1000 + b'"}'
    body = b'{"entries": [' + b",".join([entry] * 50_000) + b"]}"
    assert len(body) > 50_000_000
    problem = refused(await ground.ask("POST", ground.manager + path, body=body), 413, "payload-too-large")
    assert problem["errors"], problem
    await ground.works()


async def test_a_body_of_exactly_50_mb_is_refused_at_its_place(ground: Ground) -> None:
    for path, start, end in (
        ("/v1/tokens/blob", b'{"key": "', b'"}'),
        ("/v1/tokens/archive", b'{"prefix": "', b'/"}'),
        ("/v1/tokens/archive", b'{"entries": [{"key": "a", "name": "', b'"}]}'),
        ("/v1/tokens/archive", b'{"prefix": "", "subject": "', b'"}'),
        ("/v1/tokens/archive", b'{"prefix": "", "x": [' + b"[],", b"0]}"),
    ):
        body = start + b" " * (50_000_000 - len(start) - len(end)) + end
        answer = await ground.ask("POST", ground.manager + path, body=body)
        problem = answer.problem()
        assert answer.status in (400, 413), problem
        assert problem["errors"], problem


async def test_a_body_of_50_mb_is_refused_without_being_read(ground: Ground) -> None:
    head = ["Content-Type: application/json", f"Authorization: Bearer {API_KEY}", "Content-Length: 52428800"]
    answer = await exchange(ground.manager, request("POST", "/v1/tokens/archive", *head) + b"{" * 1000)
    assert answer is not None
    refused(answer, 413, "payload-too-large")


async def test_a_chunked_body_without_an_end_is_cut_off(ground: Ground) -> None:
    connection = await Connection.open(ground.manager)
    try:
        head = ["Content-Type: application/json", f"Authorization: Bearer {API_KEY}", "Transfer-Encoding: chunked"]
        await connection.send(request("POST", "/v1/tokens/archive", *head))
        for _ in range(64):
            await connection.send(b"100000\r\n" + b" " * MIB + b"\r\n")
        answer = await connection.answer()
        if answer is not None:  # else it closed while we were sending, and the answer was lost on the way
            refused(answer, 413, "payload-too-large")
    finally:
        connection.abort()
    await ground.works()


NOT_JSON = {
    "empty": b"",
    "not json": b"hello",
    "cut": b'{"key": "a',
    "two documents": b'{"key": "a"} {"key": "b"}',
    "NaN": b'{"key": "a", "expires_in": NaN}',
    "latin-1": '{"key": "é"}'.encode("latin-1"),
    "utf-16": '{"key": "a"}'.encode("utf-16"),
    "deep": b"[" * 200_000,
    "deep object": b'{"key":' * 100_000,
    "long number": b'{"key": "a", "expires_in": ' + b"9" * 100_000 + b"}",
    "NUL": b"\0",
    "zeros": bytes(10_000),
    "form": b"key=a",
    "surrogate and invalid": b'{"key": "\\ud800", }',
}
WRONG_TYPES: dict[str, tuple[object, list[object]]] = {
    "null": (None, []),
    "a list": ([], []),
    "a text": ("a", []),
    "a number": (7, []),
    "true": (True, []),
    "key missing": ({}, ["key"]),
    "key null": ({"key": None}, ["key"]),
    "key number": ({"key": 7}, ["key"]),
    "key list": ({"key": ["a"]}, ["key"]),
    "key object": ({"key": {"a": "b"}}, ["key"]),
    "bucket number": ({"key": "a", "bucket": 1}, ["bucket"]),
    "bucket null": ({"key": "a", "bucket": None}, ["bucket"]),
    "disposition": ({"key": "a", "disposition": "download"}, ["disposition"]),
    "filename list": ({"key": "a", "filename": []}, ["filename"]),
    "subject number": ({"key": "a", "subject": 7}, ["subject"]),
    "subject empty": ({"key": "a", "subject": ""}, ["subject"]),
    "subject long": ({"key": "a", "subject": "s" * 300}, ["subject"]),
    "unknown field": ({"key": "a", "pin": True}, ["pin"]),
    "unknown field of another mint": ({"key": "a", "entries": []}, ["entries"]),
}
WRONG_ARCHIVES: dict[str, tuple[object, list[object]]] = {
    "nothing selected": ({}, []),
    "two selections": ({"prefix": "", "entries": [{"key": "a"}]}, []),
    "three selections": ({"prefix": "", "entries": [{"key": "a"}], "run_id": "r"}, []),
    "entries object": ({"entries": {"key": "a"}}, ["entries"]),
    "entries text": ({"entries": "a"}, ["entries"]),
    "entry text": ({"entries": ["a"]}, ["entries", 0]),
    "entry null": ({"entries": [{"key": "a"}, None]}, ["entries", 1]),
    "entry without key": ({"entries": [{"name": "a"}]}, ["entries", 0, "key"]),
    "entry key number": ({"entries": [{"key": "a"}, {"key": 7}]}, ["entries", 1, "key"]),
    "entry name list": ({"entries": [{"key": "a", "name": []}]}, ["entries", 0, "name"]),
    "entry unknown field": ({"entries": [{"key": "a", "size": 7}]}, ["entries", 0, "size"]),
    "prefix without slash": ({"prefix": "a"}, []),
    "prefix number": ({"prefix": 7}, ["prefix"]),
    "format": ({"prefix": "", "format": "rar"}, ["format"]),
    "format null": ({"prefix": "", "format": None}, ["format"]),
    "compression": ({"prefix": "", "compression": 9}, ["compression"]),
    "on_missing": ({"prefix": "", "on_missing": True}, ["on_missing"]),
    "on_duplicate": ({"prefix": "", "on_duplicate": "skip"}, ["on_duplicate"]),
    "names": ({"prefix": "", "names": "posix"}, ["names"]),
    "run_id": ({"run_id": "../r1"}, ["run_id"]),
    "run_id number": ({"run_id": 7}, ["run_id"]),
    "tar, not yet": ({"prefix": "", "format": "tar"}, ["format"]),
    "deflate, not yet": ({"prefix": "", "compression": "deflate"}, ["compression"]),
    "tar with deflate": ({"prefix": "", "format": "tar", "compression": "deflate"}, []),
    "unknown field": ({"prefix": "", "password": "x"}, ["password"]),
}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
async def test_what_is_not_json_is_refused(ground: Ground, body: bytes) -> None:
    places = ((ground.manager, "/v1/tokens/blob"), (ground.manager, "/v1/tokens/archive"))
    for base, path in (*places, (ground.rpc_url, "/rpc/v1/archives")):
        answer = await ground.ask("POST", base + path, body=body)
        problem = answer.problem()
        assert answer.status == 400, problem
        assert problem["errors"], problem


@pytest.mark.parametrize(("body", "where"), WRONG_TYPES.values(), ids=WRONG_TYPES)
async def test_a_wrong_mint_of_a_blob_is_told_where(ground: Ground, body: object, where: list[object]) -> None:
    refused(await ground.post("/v1/tokens/blob", body), 400, "invalid-request", *where)
    assert (await ground.post("/v1/tokens/blob", body)).problem()["errors"]


@pytest.mark.parametrize(("body", "where"), WRONG_ARCHIVES.values(), ids=WRONG_ARCHIVES)
async def test_a_wrong_mint_of_an_archive_is_told_where(ground: Ground, body: object, where: list[object]) -> None:
    refused(await ground.post("/v1/tokens/archive", body), 400, "invalid-request", *where)
    assert (await ground.post("/v1/tokens/archive", body)).problem()["errors"]


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "json", "a/b; ;;=", "*/*"],
)
async def test_a_wrong_content_type_is_415(ground: Ground, content_type: str) -> None:
    for base, path in ((ground.manager, "/v1/tokens/blob"), (ground.rpc_url, "/rpc/v1/archives")):
        headers = {"Content-Type": content_type}
        answer = await ground.ask("POST", base + path, body=b'{"key": "a/one.txt"}', **headers)
        refused(answer, 415, "unsupported-media-type")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "nonsense"])
async def test_a_compressed_body_is_415(ground: Ground, encoding: str) -> None:
    head = ["Content-Type: application/json", f"Authorization: Bearer {API_KEY}", f"Content-Encoding: {encoding}"]
    answer = await exchange(ground.manager, request("POST", "/v1/tokens/blob", *head, body=b'{"key": "a/one.txt"}'))
    assert answer is not None
    refused(answer, 415, "unsupported-media-type")


@pytest.mark.parametrize("charset", ["utf-8", "UTF-16", "nonsense", '"', "latin-1"])
async def test_json_is_utf_8_whatever_charset_is_named(ground: Ground, charset: str) -> None:
    headers = {"Content-Type": f"application/json; charset={charset}"}
    answer = await ground.ask("POST", f"{ground.manager}/v1/tokens/blob", body=b'{"key": "a/one.txt"}', **headers)
    assert answer.status in (201, 415), answer
    if answer.status == 415:
        answer.problem()


# Lifetimes and limits


@pytest.mark.parametrize("expires_in", [0, -1, 604_801, 10**30, -(10**30), "x", "60", 1.5, True, [], {}, 1e300])
async def test_a_lifetime_outside_of_the_bounds_is_refused(ground: Ground, expires_in: object) -> None:
    for kind, selected in (("blob", {"key": "a/one.txt"}), ("archive", {"prefix": "a/"})):
        body = {**selected, "expires_in": expires_in}
        refused(await ground.post(f"/v1/tokens/{kind}", body), 400, "invalid-request", "expires_in")


@pytest.mark.parametrize("expires_in", [1, 604_800])
async def test_a_lifetime_at_the_bounds_is_kept(ground: Ground, expires_in: int) -> None:
    minted = await ground.mint("blob", {"key": "a/one.txt", "expires_in": expires_in})
    kept = jwt.decode(minted["token"], options={"verify_signature": False})
    assert kept["exp"] - kept["iat"] == expires_in


LIMITS: list[tuple[str, object]] = [
    *(("max_downloads", each) for each in (1, 0, -1, "1", 1.5, 10**30, True, [])),
    *(("allowed_networks", each) for each in (["10.0.0.0/8"], [], ["nonsense"], "10.0.0.0/8", [7])),
]


@pytest.mark.parametrize(("limit", "value"), LIMITS)
async def test_a_limit_that_nothing_enforces_is_not_promised(ground: Ground, limit: str, value: object) -> None:
    for kind, selected in (("blob", {"key": "a/one.txt"}), ("archive", {"prefix": "a/"})):
        answer = await ground.post(f"/v1/tokens/{kind}", {**selected, limit: value})
        problem = refused(answer, 400, "invalid-request")
        assert problem["errors"][0]["loc"][0] == limit, problem


@pytest.mark.parametrize("limits", [{"max_downloads": 1}, {"allowed_networks": ["127.0.0.0/8"]}])
async def test_a_limit_that_nothing_enforces_is_not_served(ground: Ground, limits: dict[str, object]) -> None:
    refused(await ground.download(signed(claims(**limits))), 400, "invalid-request")
    files = archive_claims(files=[{"key": "a/one.txt", "name": "one"}], **limits)
    refused(await ground.download(signed(files), "download-archive"), 400, "invalid-request")


# Who asks


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", f"Basic {API_KEY}", API_KEY, f"Bearer {API_KEY}x", "Bearer é",
     f"Bearer {API_KEY[:-1]}", f"Bearer {RPC_SECRET}x", "Bearer \udcff\udcfe"],
)  # fmt: skip
async def test_without_the_key_nothing_is_answered(ground: Ground, authorization: str | None) -> None:
    headers = [] if authorization is None else [f"Authorization: {authorization}"]
    paths = ["/v1/blobs?key=a", "/v1/tokens/blob", "/v1/tokens/archive", "/v1/none", "/"]
    for base, path in [*((ground.manager, path) for path in paths), (ground.rpc_url, "/rpc/v1/blobs?key=a")]:
        for method in ("GET", "POST", "DELETE"):
            answer = await exchange(base, request(method, path, *headers))
            assert answer is not None
            refused(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_one_programs_secret_is_not_the_others(ground: Ground) -> None:
    answer = await exchange(ground.manager, request("GET", "/v1/blobs?key=a", f"Authorization: Bearer {RPC_SECRET}"))
    assert answer is not None
    refused(answer, 401, "unauthorized")
    answer = await exchange(ground.rpc_url, request("GET", "/rpc/v1/blobs?key=a", f"Authorization: Bearer {API_KEY}"))
    assert answer is not None
    refused(answer, 401, "unauthorized")


# Tokens


def claims(**changes: object) -> dict[str, object]:
    """The claims of a good blob token, changed; None removes a claim."""
    now = int(time.time())
    good: dict[str, object] = {"iss": "manager-api", "aud": "storage-proxy", "iat": now, "nbf": now, "exp": now + 600}
    good |= {"jti": "hostile", "op": "blob", "bucket": "default", "key": "a/one.txt", "filename": "one.txt"}
    good |= {"disposition": "attachment"}
    return {name: value for name, value in (good | changes).items() if value is not None}


def archive_claims(**changes: object) -> dict[str, object]:
    base = claims(op="archive", key=None, disposition=None, format="zip", compression="store")
    return {name: value for name, value in (base | changes).items() if value is not None}


def signed(payload: object, *, secret: str = TOKEN_SECRET, **header: object) -> str:
    """A token with any payload, and changes of its header."""
    kept = {"kid": "e2e", "typ": "dl+jwt"} | header
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return jwt.PyJWS().encode(body, secret, algorithm="HS256", headers=kept)


def with_header(header: object, payload: object, *, digest: str = "sha256", signature: bytes | None = None) -> str:
    """A token made by hand, signed with our secret unless ``signature`` is given: PyJWT refuses to make some."""
    first = ".".join(base64url(json.dumps(part).encode()) for part in (header, payload))
    if signature is None:
        signature = hmac.digest(TOKEN_SECRET.encode(), first.encode(), digest)
    return f"{first}.{base64url(signature)}"


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


GOOD_HEADER = {"alg": "HS256", "kid": "e2e", "typ": "dl+jwt"}


def invalid_tokens() -> dict[str, str]:
    good = signed(claims())
    head, payload, signature = good.split(".")
    now = int(time.time())
    return {
        "alg none, unsigned": with_header({**GOOD_HEADER, "alg": "none"}, claims(), signature=b""),
        "alg None": with_header({**GOOD_HEADER, "alg": "None"}, claims(), signature=b""),
        "alg none, signed": with_header({**GOOD_HEADER, "alg": "none"}, claims()),
        "alg HS384": with_header({**GOOD_HEADER, "alg": "HS384"}, claims(), digest="sha384"),
        "alg HS512": with_header({**GOOD_HEADER, "alg": "HS512"}, claims(), digest="sha512"),
        "alg HS512 in name only": with_header({**GOOD_HEADER, "alg": "HS512"}, claims()),
        "alg RS256": with_header({**GOOD_HEADER, "alg": "RS256"}, claims()),
        "alg EdDSA": with_header({**GOOD_HEADER, "alg": "EdDSA"}, claims()),
        "alg hs256": with_header({**GOOD_HEADER, "alg": "hs256"}, claims()),
        "alg missing": with_header({"kid": "e2e", "typ": "dl+jwt"}, claims()),
        "alg number": with_header({**GOOD_HEADER, "alg": 256}, claims()),
        "alg list": with_header({**GOOD_HEADER, "alg": ["HS256"]}, claims()),
        "alg object": with_header({**GOOD_HEADER, "alg": {}}, claims()),
        "kid missing": with_header({"alg": "HS256", "typ": "dl+jwt"}, claims()),
        "kid wrong": signed(claims(), kid="other"),
        "kid empty": signed(claims(), kid=""),
        "kid path": signed(claims(), kid="../../dev/null"),
        "kid number": with_header({**GOOD_HEADER, "kid": 7}, claims()),
        "kid list": with_header({**GOOD_HEADER, "kid": ["e2e"]}, claims()),
        "kid null": with_header({**GOOD_HEADER, "kid": None}, claims()),
        "typ missing": with_header({"alg": "HS256", "kid": "e2e"}, claims()),
        "typ JWT": signed(claims(), typ="JWT"),
        "typ list": with_header({**GOOD_HEADER, "typ": ["dl+jwt"]}, claims()),
        "crit": with_header({**GOOD_HEADER, "crit": ["exp"]}, claims()),
        "jwk": with_header({**GOOD_HEADER, "jwk": {"kty": "oct", "k": "AA"}}, claims()),
        "b64": with_header({**GOOD_HEADER, "b64": False}, claims()),
        "header list": with_header([], claims()),
        "header text": with_header("HS256", claims()),
        "header null": with_header(None, claims()),
        "another secret": signed(claims(), secret="another-secret-0123456789abcdef0123456789"),
        "signature cut": good[:-4],
        "signature missing": f"{head}.{payload}.",
        "signature of another payload": f"{head}.{signed(claims(key='a/two.txt')).split('.')[1]}.{signature}",
        "two parts": f"{head}.{payload}",
        "four parts": f"{good}.{signature}",
        "iss": signed(claims(iss="someone")),
        "iss missing": signed(claims(iss=None)),
        "iss list": signed(claims(iss=["manager-api"])),
        "iss number": signed(claims(iss=7)),
        "aud": signed(claims(aud="someone")),
        "aud missing": signed(claims(aud=None)),
        "aud list": signed(claims(aud=["storage-proxy"])),
        "aud number": signed(claims(aud=7)),
        "aud object": signed(claims(aud={"storage-proxy": 1})),
        "exp missing": signed(claims(exp=None)),
        "exp text": signed(claims(exp=str(now + 600))),
        "exp float": signed(claims(exp=now + 600.5)),
        "exp huge": signed(claims(exp=10**400)),
        "exp negative": signed(claims(exp=-1)),
        "exp true": signed(claims(exp=True)),
        "exp NaN": signed(claims(exp=float("nan"))),
        "exp infinite": signed(claims(exp=float("inf"))),
        "nbf missing": signed(claims(nbf=None)),
        "nbf text": signed(claims(nbf="now")),
        "iat missing": signed(claims(iat=None)),
        "iat future": signed(claims(iat=now + 3600)),
        "iat list": signed(claims(iat=[now])),
        "jti missing": signed(claims(jti=None)),
        "jti number": signed(claims(jti=7)),
        "jti empty": signed(claims(jti="")),
        "jti surrogate": signed(claims(jti=SURROGATE)),
        "sub number": signed(claims(sub=7)),
        "over-long": signed(claims(filename="f" * 6000)),
        "payload list": signed([]),
        "payload text": signed("text"),
        "payload null": signed(b"null"),
        "payload empty": signed(b""),
        "payload junk": signed(b"\xff\xfe\0"),
        "payload deep": signed(b"[" * 4000),
        "payload long number": signed(b'{"exp": ' + b"9" * 4400 + b"}"),
        "junk": "junk",
        "dots": "..",
        "one dot": ".",
        "space": "   .  . ",
        "non-ascii": "é.é.é",
        "not base64": "!!!.???.###",
        "control": "a\0b.c.d",
        "long junk": "a" * 10_000,
        "newline at the end": f"{good}\n",
    }


@pytest.mark.parametrize("case", invalid_tokens())
async def test_a_token_that_is_not_ours_is_invalid(ground: Ground, case: str) -> None:
    token = invalid_tokens()[case]
    for route in ("download", "download-archive"):
        answer = await ground.download(token, route)
        refused(answer, 401, "token-invalid")
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert (await ground.download(token, route, "HEAD")).status == 401


async def test_a_good_token_of_the_same_making_works(ground: Ground) -> None:
    for token in (signed(claims()), with_header(GOOD_HEADER, claims())):
        assert (await ground.download(token)).body == b"one\n"
    files = signed(archive_claims(files=[{"key": "a/one.txt", "name": "x"}]))
    assert (await ground.download(files, "download-archive")).status == 200


async def test_times_are_told_apart(ground: Ground) -> None:
    now = int(time.time())
    for code, changes in (
        ("token-expired", {"exp": now - 31}),
        ("token-expired", {"exp": 0}),
        ("token-not-active", {"nbf": now + 3600}),
        ("token-not-active", {"nbf": now + 3600, "exp": now + 7200}),
    ):
        for route in ("download", "download-archive"):
            refused(await ground.download(signed(claims(**changes)), route), 401, code)
    for changes in ({"exp": now - 5}, {"nbf": now + 5}, {"iat": now + 5}):
        assert (await ground.download(signed(claims(**changes)))).status == 200, "within the leeway of 30 s"


async def test_an_absent_token_is_missing(ground: Ground) -> None:
    for target in ("/download", "/download?token=", "/download-archive", "/download?Token=x", "/download?token"):
        refused(await ground.ask("GET", ground.client + target), 401, "token-missing")


async def test_two_tokens_are_one_too_many(ground: Ground) -> None:
    token = signed(claims())
    ground.credentials.append(token)
    for second in (token, "", "junk"):
        url = f"{ground.client}/download?token={token}&token={second}"
        refused(await ground.ask("GET", url), 400, "invalid-request")
        refused(await ground.ask("GET", url, Authorization=f"Bearer {token}"), 400, "invalid-request")


async def test_the_authorization_header_wins(ground: Ground) -> None:
    good = signed(claims())
    ground.credentials.append(good)
    answer = await ground.ask("GET", f"{ground.client}/download?token=junk", Authorization=f"Bearer {good}")
    assert answer.body == b"one\n"
    answer = await ground.ask("GET", f"{ground.client}/download?token={good}", Authorization="Bearer junk")
    refused(answer, 401, "token-invalid")


PAYLOADS: dict[str, dict[str, object]] = {
    "unknown claim": claims(admin=True),
    "unknown op": claims(op="delete"),
    "op number": claims(op=7),
    "op list": claims(op=["blob"]),
    "op missing": claims(op=None),
    "key missing": claims(key=None),
    "key empty": claims(key=""),
    "key number": claims(key=7),
    "key surrogate": claims(key=SURROGATE),
    "bucket missing": claims(bucket=None),
    "bucket list": claims(bucket=["default"]),
    "disposition": claims(disposition="run"),
    "filename missing": claims(filename=None),
    "filename unsafe": claims(filename="a\r\nX: 1"),
    "filename empty": claims(filename=""),
    "filename surrogate": claims(filename=SURROGATE),
    "max_downloads text": claims(max_downloads="1"),
    "archive without entries": archive_claims(),
    "archive with both": archive_claims(manifest="sha256:" + "0" * 64, files=[{"key": "a", "name": "a"}]),
    "manifest junk": archive_claims(manifest="../../x"),
    "manifest upper case": archive_claims(manifest="sha256:" + "A" * 64),
    "files empty": archive_claims(files=[]),
    "files 51": archive_claims(files=[{"key": f"{index}", "name": f"{index}"} for index in range(51)]),
    "files text": archive_claims(files="a"),
    "files without a name": archive_claims(files=[{"key": "a/one.txt"}]),
    "files unknown field": archive_claims(files=[{"key": "a", "name": "a", "size": 1}]),
    "tar": archive_claims(files=[{"key": "a/one.txt", "name": "one"}], format="tar"),
    "deflate": archive_claims(files=[{"key": "a/one.txt", "name": "one"}], compression="deflate"),
    "archive filename unsafe": archive_claims(files=[{"key": "a/one.txt", "name": "one"}], filename="../x"),
}


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
async def test_a_well_signed_payload_of_another_shape_is_400(ground: Ground, payload: dict[str, object]) -> None:
    route = "download-archive" if payload.get("op") == "archive" else "download"
    fresh = {name: claims()[name] if name in ("iat", "nbf", "exp") else value for name, value in payload.items()}
    refused(await ground.download(signed(fresh), route), 400, "invalid-request")
    assert (await ground.download(signed(fresh), route, "HEAD")).status == 400


async def test_a_token_for_one_operation_is_refused_on_the_others_route(ground: Ground) -> None:
    upload = {"op": "upload", "key": "runs/r1/x", "run_id": "r1", "path": "x", "filename": None, "disposition": None}
    files = archive_claims(files=[{"key": "a/one.txt", "name": "one"}])
    for payload, route in (
        (claims(), "download-archive"),
        (files, "download"),
        (claims(**upload), "download"),
        (claims(**upload), "download-archive"),
    ):
        refused(await ground.download(signed(payload), route), 403, "token-wrong-operation")


# Methods


ROUTES = {
    "manager": ["/", "/v1/blobs?key=a/one.txt", "/v1/tokens/blob", "/v1/tokens/archive", "/v1/none", "/metrics",
                "/docs", "/openapi.json", "/health/live", "/health/ready", "/v1/tokens/none", "//", "/%2e%2e/",
                "/v1/blobs"],
    "client": ["/", "/download", "/download-archive", "/download?token=x", "/upload", "/blob-batch", "/metrics",
               "/health/live", "/health/ready", "/download/", "/download%2f", "/%00", "/%ff"],
    "rpc": ["/", "/rpc/v1/blobs?key=a/one.txt", "/rpc/v1/archives", "/rpc/v1/health", "/metrics", "/health/live"],
    "operations": ["/", "/metrics", "/health/live", "/health/ready", "/download", "/debug"],
}  # fmt: skip
METHODS = ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "POST", "DELETE", "PATCH", "PROPFIND", "FOO", "get"]


@pytest.mark.parametrize(("listener", "method"), list(product(ROUTES, METHODS)))
async def test_every_method_on_every_route_is_answered_and_a_refusal_is_a_problem(
    ground: Ground, listener: str, method: str
) -> None:
    secret = RPC_SECRET if listener == "rpc" else API_KEY
    authorization = [] if listener == "client" else [f"Authorization: Bearer {secret}"]
    for target, body in product(ROUTES[listener], (b"", b"{}", b"\0" * 5000)):
        message = request(method, target, *authorization, body=body)
        answer = await exchange(ground.listeners[listener], message, to_head=method == "HEAD")
        assert answer is not None, target
        assert answer.status < 500, (target, answer)
        assert answer.headers["x-request-id"], target
        if answer.status >= 400 and method != "HEAD":
            problem = answer.problem()
            if answer.status == 405:
                assert problem["code"] == "method-not-allowed"
                assert answer.headers["allow"]
                assert method not in answer.headers["allow"].split(", ")
        elif method == "HEAD" and answer.status >= 400:
            assert answer.headers["content-type"].startswith("application/problem+json")


async def test_head_is_get_without_its_body(ground: Ground) -> None:
    blob = await ground.mint("blob", {"key": "a/one.txt"})
    archive = await ground.mint("archive", {"prefix": "a/"})
    for url in (blob["url"], archive["url"], f"{ground.manager}/v1/blobs?key=a/one.txt", f"{ground.client}/download"):
        base = ground.manager if url.startswith(ground.manager) else ground.client
        target = url.removeprefix(base)
        headers = [f"Authorization: Bearer {API_KEY}"] if base == ground.manager else []
        got = await exchange(base, request("GET", target, *headers))
        connection = await Connection.open(base)
        try:
            await connection.send(request("HEAD", target, *headers))
            head = await connection.answer(to_head=True)
            assert got is not None
            assert head is not None
            varying = {"date", "x-request-id", "connection"}
            assert {n: v for n, v in head.headers.items() if n not in varying} == {
                n: v for n, v in got.headers.items() if n not in varying
            }
            assert head.status == got.status
            # Nothing of a body follows: the next answer on the same connection is whole.
            await connection.send(request("GET", "/health/live"))
            following = await connection.answer()
            assert following is not None
            assert following.status == 200
        finally:
            connection.abort()


# The wire


JSON_HEAD = (
    b"POST /v1/tokens/blob HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Authorization: Bearer " + API_KEY.encode() + b"\r\n"
)
CHUNKED = JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
GET = b"GET /health/live HTTP/1.1\r\nHost: x\r\n"
BROKEN: dict[str, bytes] = {
    "garbage": b"\x00\x01\x02garbage\r\n\r\n",
    "a TLS hello": bytes.fromhex("16030100a5010000a10303") + bytes(160) + b"\r\n\r\n",
    "text": b"hello\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "only a method": b"GET\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "three words too many": b"GET / /x HTTP/1.1 x\r\n\r\n",
    "no version number": b"GET / HTTP/\r\n\r\n",
    "HTTP/9.9": b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    "HTTP/1.10": b"GET / HTTP/1.10\r\nHost: x\r\n\r\n",
    "another protocol": b"GET / FTP/1.1\r\nHost: x\r\n\r\n",
    "a method with a colon": b"GE:T / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a NUL in the target": b"GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a header without a colon": GET + b"nonsense\r\n\r\n",
    "a header without a name": GET + b": x\r\n\r\n",
    "a space before the colon": GET + b"X-Y : z\r\n\r\n",
    "a NUL in a header": GET + b"X-Y: a\0b\r\n\r\n",
    "a CR in a header": GET + b"X-Y: a\rb\r\n\r\n",
    "a Content-Length that is none": GET + b"Content-Length: x\r\n\r\n",
    "a negative Content-Length": GET + b"Content-Length: -1\r\n\r\n",
    "a signed Content-Length": GET + b"Content-Length: +1\r\n\r\n",
    "an empty Content-Length": GET + b"Content-Length:\r\n\r\n",
    "a Content-Length of 30 digits": JSON_HEAD + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
    "two Content-Lengths": GET + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    "Content-Length and chunked": CHUNKED[:-2] + b"Content-Length: 3\r\n\r\n0\r\n\r\n",
    "an unknown transfer coding": JSON_HEAD + b"Transfer-Encoding: nonsense\r\n\r\n",
    "chunked, then more": JSON_HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunked twice": JSON_HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "a chunk size that is none": CHUNKED + b"nonsense\r\n{}\r\n0\r\n\r\n",
    "a negative chunk size": CHUNKED + b"-2\r\n{}\r\n0\r\n\r\n",
    "a chunk size with 0x": CHUNKED + b"0x2\r\n{}\r\n0\r\n\r\n",
    "a huge chunk size": CHUNKED + b"F" * 40 + b"\r\n{}\r\n0\r\n\r\n",
    "a chunk longer than its size": CHUNKED + b"2\r\n{}{}{}{}\r\n0\r\n\r\n",
    "a chunk shorter than its size": CHUNKED + b"5\r\n{}\r\n0\r\n\r\n",
    "an empty chunk size": CHUNKED + b"\r\n{}\r\n0\r\n\r\n",
    "a long chunk extension": CHUNKED + b"2;" + b"e" * 100_000 + b"\r\n{}\r\n0\r\n\r\n",
    "long trailers": CHUNKED + b"2\r\n{}\r\n0\r\nX-T: " + b"t" * 100_000 + b"\r\n\r\n",
    "a long request line": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "a long query": b"GET /download?token=" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "a long header": GET + b"X-Y: " + b"a" * 1_000_000 + b"\r\n\r\n",
    "a long header name": GET + b"X" * 100_000 + b": a\r\n\r\n",
    "a long cookie": GET + b"Cookie: " + b"a=b; " * 20_000 + b"\r\n\r\n",
    "an unclosed IPv6 host": b"GET http://[::1/ HTTP/1.1\r\nHost: [::1\r\n\r\n",
    "a bad port": b"GET http://x:99999999/ HTTP/1.1\r\nHost: x:99999999\r\n\r\n",
    "CONNECT": b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n",
    "CONNECT nonsense": b"CONNECT nonsense HTTP/1.1\r\nHost: x\r\n\r\n",
}
TOLERABLE: dict[str, bytes] = {
    "bare line feeds": b"GET /health/live HTTP/1.1\nHost: x\n\n",
    "no host": b"GET /health/live HTTP/1.1\r\n\r\n",
    "two hosts": GET + b"Host: y\r\n\r\n",
    "a host that is none": b"GET /health/live HTTP/1.1\r\nHost: \xff\xfe:x:y\r\n\r\n",
    "an empty host": b"GET /health/live HTTP/1.1\r\nHost:\r\n\r\n",
    "absolute form": b"GET http://x/health/live HTTP/1.1\r\nHost: x\r\n\r\n",
    "absolute form of another scheme": b"GET gopher://x/health/live HTTP/1.1\r\nHost: x\r\n\r\n",
    "OPTIONS *": b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET *": b"GET * HTTP/1.1\r\nHost: x\r\n\r\n",
    "no slash": b"GET health/live HTTP/1.1\r\nHost: x\r\n\r\n",
    "a fragment": b"GET /health/live#x HTTP/1.1\r\nHost: x\r\n\r\n",
    "bytes over ASCII in the target": b"GET /\xff\xfe\xc3\xa9?\xff=\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    "half an escape": b"GET /%/%2/%zz?%=%&token=%e HTTP/1.1\r\nHost: x\r\n\r\n",
    "an invalid escape of a token": b"GET /download?token=%ff%00%ed%a0%80 HTTP/1.1\r\nHost: x\r\n\r\n",
    "many parameters": b"GET /download?" + b"&".join([b"a=b"] * 4000) + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "bytes over ASCII in a header": GET + b"X-Y: \xff\xfe\r\nAuthorization: Bearer \xff\r\n\r\n",
    "a folded header": GET + b"X-Y: a\r\n b\r\n\r\n",
    "many headers": GET + b"".join(b"X-%d: a\r\n" % index for index in range(5000)) + b"\r\n",
    "one header many times": GET + b"Range: bytes=0-1\r\n" * 100 + b"\r\n",
    "two Authorizations": GET + b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n",
    "an upgrade to a web socket": GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    "an upgrade to h2c": GET + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n\r\n",
    "an unknown expectation": GET + b"Expect: the-unexpected\r\n\r\n",
    "a GET with a body": GET + b"Content-Length: 2\r\n\r\n{}",
    "a chunked GET": GET + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "HTTP/1.0": b"GET /health/live HTTP/1.0\r\n\r\n",
    "HTTP/1.0 and chunked": b"POST /v1/tokens/blob HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "empty lines first": b"\r\n\r\n" + GET + b"\r\n",
    "a long line of spaces": b"GET" + b" " * 200 + b"/health/live HTTP/1.1\r\nHost: x\r\n\r\n",
    "a lower-case method": b"get /health/live HTTP/1.1\r\nHost: x\r\n\r\n",
    "a long method": b"A" * 500 + b" / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a request id that is none": GET + b"X-Request-Id: a b\tc\r\n\r\n",
}
UNFINISHED = {
    "nothing": b"",
    "half a line": b"GET /heal",
    "half a header": GET + b"X-",
    "half a body": JSON_HEAD + b'Content-Length: 100\r\n\r\n{"key": ',
    "half a chunk": CHUNKED + b"100\r\n{",
    "a chunk without its end": CHUNKED + b"2\r\n{}\r\n",
}


@pytest.mark.parametrize("message", BROKEN.values(), ids=BROKEN)
async def test_what_is_not_http_is_refused(ground: Ground, message: bytes) -> None:
    for base in ground.listeners.values():
        answer = await exchange(base, message)
        if answer is not None:  # else it was closed while there was more to read: the answer was lost on the way
            assert 400 <= answer.status < 500 or answer.status == 505, answer
            answer.problem()
    await ground.works()


@pytest.mark.parametrize("message", TOLERABLE.values(), ids=TOLERABLE)
async def test_what_is_odd_is_answered_one_way_or_the_other(ground: Ground, message: bytes) -> None:
    for base in ground.listeners.values():
        answer = await exchange(base, message)
        assert answer is not None
        assert answer.status < 500, answer
        if answer.status >= 400:
            answer.problem()
    await ground.works()


@pytest.mark.parametrize("message", UNFINISHED.values(), ids=UNFINISHED)
async def test_a_request_that_is_never_finished_harms_nobody(ground: Ground, message: bytes) -> None:
    connections = [await Connection.open(base) for base in ground.listeners.values() for _ in range(20)]
    for connection in connections:
        await connection.send(message)
    await ground.works()
    for connection in connections:
        connection.abort()
    await ground.works()


async def test_a_broken_line_is_told_as_a_problem(ground: Ground) -> None:
    for base in ground.listeners.values():
        connection = await Connection.open(base)
        try:
            await connection.send(b"nonsense\r\n\r\n")
            answer = await connection.answer()
            assert answer is not None
            refused(answer, 400, "invalid-request")
            assert await connection.is_closed()
        finally:
            connection.abort()


@pytest.mark.parametrize("message", [b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n", GET + b"X: " + b"a" * 20_000])
async def test_a_long_line_is_431(ground: Ground, message: bytes) -> None:
    for base in ground.listeners.values():
        answer = await exchange(base, message)
        assert answer is not None
        refused(answer, 431, "headers-too-large")


async def test_requests_in_a_row_are_answered_in_their_order(ground: Ground) -> None:
    for base in ground.listeners.values():
        connection = await Connection.open(base)
        try:
            many = [request("GET", f"/none/{index}", f"X-Request-Id: r{index}") for index in range(50)]
            await connection.send(b"".join(many))
            for index in range(50):
                answer = await connection.answer()
                assert answer is not None
                assert answer.headers["x-request-id"] == f"r{index}"
                assert answer.status in (401, 404)
        finally:
            connection.abort()


async def test_garbage_after_a_good_request_does_not_harm_its_answer(ground: Ground) -> None:
    for base in ground.listeners.values():
        connection = await Connection.open(base)
        try:
            await connection.send(request("GET", "/none", "X-Request-Id: good"))
            answer = await connection.answer()
            assert answer is not None
            assert answer.headers["x-request-id"] == "good"
            await connection.send(b"\0garbage\r\n\r\n")
            answer = await connection.answer()
            assert answer is not None
            refused(answer, 400, "invalid-request")
            assert await connection.is_closed()
        finally:
            connection.abort()
    await ground.works()


async def test_a_body_that_is_expected_is_asked_for(ground: Ground) -> None:
    body = b'{"key": "a/one.txt"}'
    connection = await Connection.open(ground.manager)
    try:
        head = ["Content-Type: application/json", f"Authorization: Bearer {API_KEY}", "Expect: 100-continue"]
        await connection.send(request("POST", "/v1/tokens/blob", *head, f"Content-Length: {len(body)}"))
        await connection.send(body)
        answer = await connection.answer()
    finally:
        connection.abort()
    assert answer is not None
    assert answer.interim == (100,)
    assert answer.status == 201


async def test_a_body_that_is_refused_is_not_asked_for_or_at_least_refused(ground: Ground) -> None:
    for headers, status in (
        ([f"Authorization: Bearer {API_KEY}", "Content-Type: text/plain"], 415),
        (["Authorization: Bearer wrong", "Content-Type: application/json"], 401),
    ):
        message = request("POST", "/v1/tokens/blob", *headers, "Expect: 100-continue", "Content-Length: 1000000")
        answer = await exchange(ground.manager, message)
        assert answer is not None
        assert answer.status == status
        answer.problem()


async def test_clients_that_reset_everywhere_harm_nobody(ground: Ground) -> None:
    token = signed(claims())
    ground.credentials.append(token)
    messages = [request("GET", f"/download?token={token}"), CHUNKED, JSON_HEAD + b"\r\n", GET + b"\r\n", b"GET"]
    for message, base in product(messages, ground.listeners.values()):
        for _ in range(10):
            connection = await Connection.open(base)
            await connection.send(message)
            connection.abort()
    await ground.works()


CONDITIONS = [
    f"{name}: {value}"
    for name in ("Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since")
    for value in (
        "", "nonsense", "bytes=", "bytes=-", "bytes=5-2", "bytes=-0", "bytes=99999999999999999999999-", "bytes=0-0,1-1",
        "bytes=" + "0-1," * 3000, "lines=0-1", '"', 'W/"', "*", '"a", "b', "\udcff", "Thu, 99 Foo 2024 99:99:99 GMT",
        "Thu, 01 Jan 99999 00:00:00 GMT", "Thu, 01 Jan 0000 00:00:00 GMT", "9" * 5000, "bytes=" + "9" * 5000 + "-",
        "bytes=٣-٤", "bytes=1_0-",
    )
]  # fmt: skip


async def test_conditional_headers_of_any_kind_are_answered(ground: Ground) -> None:
    blob, archive = await ground.mint("blob", {"key": "a/one.txt"}), await ground.mint("archive", {"prefix": "a/"})
    for header, minted in product(CONDITIONS, (blob, archive)):
        target = minted["url"].removeprefix(ground.client)
        for method in ("GET", "HEAD"):
            answer = await exchange(ground.client, request(method, target, header), to_head=method == "HEAD")
            assert answer is not None, header[:100]
            assert answer.status in (200, 206, 304, 400, 412, 416), (header[:100], answer)


# Anything at all


def fuzz(examples: int) -> Any:
    """Seeded, and small unless the profile asks for more."""
    return settings(
        max_examples=max(examples, settings().max_examples if settings().max_examples > 1000 else 0),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


TEXT = st.text(st.characters(exclude_categories=()), max_size=40) | st.sampled_from(
    ["a/one.txt", "a/", "", "default", "zip", "store", "skip", "rename", "exact", "../x", "/", "\\", ".storage-proxy/x"]
)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
JSON = st.recursive(SCALAR, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4))
ENTRY = st.fixed_dictionaries({"key": TEXT}, optional={"name": TEXT | JSON, "bucket": TEXT | JSON, "x": JSON}) | JSON
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "bucket": st.just("default") | TEXT | JSON,
    "filename": TEXT | JSON,
    "expires_in": st.integers(1, 600) | JSON,
    "subject": TEXT | JSON,
    "max_downloads": JSON,
    "allowed_networks": JSON,
}
BLOB = st.fixed_dictionaries({"key": TEXT}, optional={**FIELDS, "disposition": TEXT | JSON})
ARCHIVE = st.fixed_dictionaries(
    {},
    optional={
        **FIELDS,
        "entries": st.lists(ENTRY, max_size=5) | JSON,
        "prefix": TEXT | JSON,
        "run_id": TEXT,
        "format": TEXT | JSON,
        "compression": TEXT | JSON,
        "on_missing": TEXT | JSON,
        "on_duplicate": TEXT | JSON,
        "names": TEXT | JSON,
    },
)


def no_failure(answer: Answer) -> None:
    assert answer.status < 500, answer
    if answer.status >= 400:
        answer.problem()


@fuzz(80)
@given(path=st.sampled_from(["/v1/tokens/blob", "/v1/tokens/archive"]), body=BLOB | ARCHIVE | JSON)
async def test_any_json_sent_to_the_manager_is_answered(ground: Ground, path: str, body: object) -> None:
    no_failure(await ground.post(path, body))


@fuzz(80)
@given(body=ARCHIVE | JSON)
async def test_any_json_sent_to_the_rpc_is_answered(ground: Ground, body: object) -> None:
    no_failure(await ground.post("/rpc/v1/archives", body, base=ground.rpc_url))


@fuzz(60)
@given(body=st.binary(max_size=200), json_like=st.text('{}[]":,\\ue0123dfa \n', max_size=60))
async def test_any_bytes_sent_as_json_are_answered(ground: Ground, body: bytes, json_like: str) -> None:
    for each in (body, json_like.encode()):
        for base, path in ((ground.manager, "/v1/tokens/archive"), (ground.rpc_url, "/rpc/v1/archives")):
            no_failure(await ground.ask("POST", base + path, body=each))


QUERY_BYTES = st.binary(max_size=30).map(lambda raw: quote(raw, safe="")) | st.text(
    "abcKEYkeytoken=&%+;/?.\\:@0f~!$'()*,", max_size=40
)
QUERY = st.builds(
    "&".join,
    st.lists(
        QUERY_BYTES
        | st.builds("{}={}".format, st.sampled_from(["key", "bucket", "token", "x"]), QUERY_BYTES | st.just("default")),
        max_size=4,
    ),
)


@fuzz(80)
@given(query=QUERY)
async def test_any_query_on_any_route_is_answered(ground: Ground, query: str) -> None:
    for listener, base in ground.listeners.items():
        secret = RPC_SECRET if listener == "rpc" else API_KEY
        headers = [] if listener == "client" else [f"Authorization: Bearer {secret}"]
        for path in sorted({target.partition("?")[0] for target in ROUTES[listener]}):
            answer = await exchange(base, request("GET", f"{path}?{query}", *headers))
            assert answer is not None, path
            no_failure(answer)


@fuzz(150)
@given(data=st.data())
async def test_any_claims_and_header_well_signed_are_answered(ground: Ground, data: st.DataObject) -> None:
    changes = data.draw(
        st.dictionaries(st.sampled_from([*claims(), "files", "manifest", "sub", "x"]), JSON, max_size=3)
    )
    header = data.draw(st.just(GOOD_HEADER) | st.dictionaries(TEXT, JSON, max_size=3).map(lambda d: GOOD_HEADER | d))
    payload = data.draw(st.just(claims() | changes) | st.just(archive_claims() | changes) | JSON)
    for route in ("download", "download-archive"):
        no_failure(await ground.download(with_header(header, payload), route))


@fuzz(100)
@given(message=st.binary(max_size=300))
async def test_any_bytes_on_the_wire_end_no_process(ground: Ground, message: bytes) -> None:
    for base in ground.listeners.values():
        answer = await exchange(base, message + b"\r\n\r\n", within=1.0)
        if answer is not None:  # empty lines, for one, begin no request
            assert answer.status < 500 or answer.status == 505, answer


# Afterwards


async def test_no_token_and_no_secret_is_in_any_log_and_nothing_failed_inside(ground: Ground) -> None:
    """The last test of this module: all the others have had their say."""
    minted = await ground.mint("archive", {"prefix": "a/"})
    for headers in (
        {"Authorization": f"Bearer {minted['token']}x"},
        {"Referer": minted["url"], "Cookie": f"token={minted['token']}"},
        {"X-Request-Id": minted["token"]},
        {"User-Agent": minted["url"]},
    ):
        await ground.ask("GET", minted["url"], **headers)
        await ground.ask("GET", f"{ground.client}/{minted['token']}", **headers)
        await ground.ask("GET", f"{ground.manager}/v1/blobs?key={minted['token']}")
    await exchange(ground.client, f"GET /download?token={minted['token']} HTTP/1.1 nonsense\r\n\r\n".encode())
    await exchange(ground.client, GET + f"X-Y {minted['token']}\r\n\r\n".encode())
    await asyncio.sleep(0.2)
    logs = "".join(program.log.read_text() for program in ground.service.programs)
    assert "download" in logs
    for secret in (TOKEN_SECRET, RPC_SECRET, API_KEY):
        assert secret[:16] not in logs
    for token in ground.credentials:
        if len(token) > 100:
            assert token not in logs
            assert token.split(".")[-1] not in logs or len(token.split(".")[-1]) < 20
            assert token[:60] not in logs
    failures = [line for line in logs.splitlines() if " ERROR " in line or "Traceback" in line]
    assert failures == []
