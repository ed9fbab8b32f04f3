"""A run's whole life over real programs: upload, list, archive, batch, delete, and every command of an operator.

Twice: embedded (a local bucket, SQLite, the embedded bus, one process that does all) and as in production (a real S3
server, a real Kafka, workers of their own).
"""

import asyncio
import json
import re
import zipfile
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import zip_readers
from tests.support.deployment import IMPATIENT, Backing, deployed
from tests.support.operator import Operator
from tests.support.programs import Program, Service, get_json, run, service

RUN = "nightly-7"
BLOBS = {"logs/a.txt": b"first\n" * 500, "logs/b.txt": b"second\n" * 900, "größe & 名前.bin": bytes(range(256)) * 40}
JOBS = ("cleanup-orphans", "cleanup-tombstones", "cleanup-manifests", "cleanup-expired", "reconcile-pending")
WITHIN = 60.0


@dataclass
class House:
    """A service and what is asked of it."""

    service: Service
    bucket: str
    operator: Operator
    directory: Path
    state: Path

    async def upload(self, run_id: str, path: str, body: bytes) -> str:
        """Prepare, and put by curl; the upload's id."""
        order = {"run_id": run_id, "path": path, "bucket": self.bucket, "size": len(body), "expires_in": 30}
        status, prepared = await self.service.post("/v1/uploads", order)
        assert status == 201, prepared
        sent = self.directory / "sent"
        sent.write_bytes(body)
        headers = [
            part
            for name, value in prepared["headers"].items()
            if name.lower() != "content-length"
            for part in ("-H", f"{name}: {value}")
        ]
        assert await run("curl", "-sSf", "-o", "/dev/null", "-T", str(sent), *headers, prepared["url"]) == (0, "")
        return str(prepared["upload_id"])

    async def verified(self, run_id: str, **more: str) -> dict[str, dict[str, Any]]:
        query = "&".join(f"{name}={value}" for name, value in more.items())
        status, page = await self.service.get(f"/v1/runs/{run_id}/blobs?{query}")
        assert status == 200, page
        return {blob["path"]: blob for blob in page["blobs"]}

    async def answers(self) -> list[tuple[int, dict[str, Any]]]:
        """What is told of all runs that these tests make."""
        paths = [f"/v1/runs/{name}{more}" for name in (RUN, "kept", "gone") for more in ("", "/blobs?state=all")]
        return [_without_request(*await self.service.get(path)) for path in paths]


def _without_request(status: int, answer: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    return status, {name: value for name, value in answer.items() if name != "request_id"}


@pytest.fixture(params=["embedded", "production"])
async def house(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[House]:
    zip_readers.program("curl")
    if request.param == "production":
        backing: Backing = request.getfixturevalue("backing")
        async with deployed(backing, tmp_path, workers=["ingest", "control"]) as deployment:
            state = tmp_path / "programs" / "state.db"
            yield House(deployment.service, "media", deployment.operator, tmp_path, state)
        return
    (tmp_path / "blobs").mkdir()
    buckets = {"default": {"kind": "local", "root": str(tmp_path / "blobs")}}
    more = "\n".join(f"[{table}]\n{text}" for table, text in IMPATIENT.items())
    async with service(tmp_path / "programs", buckets, more=more, serving="all") as running:
        state = tmp_path / "programs" / "state.db"
        yield House(running, "default", Operator(running.proxies[0].config), tmp_path, state)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WITHIN):
        while not await condition():
            await asyncio.sleep(0.1)


async def test_a_run_is_uploaded_listed_downloaded_and_deleted(house: House) -> None:
    for path, body in BLOBS.items():
        upload_id = await house.upload(RUN, path, body)
    status, blob = await house.service.post(f"/v1/uploads/{upload_id}/complete", {})
    assert (status, blob["crc32"]) == (200, f"{zlib.crc32(body):08x}")

    async def all_there() -> bool:
        return len(await house.verified(RUN)) == len(BLOBS)

    await until(all_there)
    listed = await house.verified(RUN, uris="true")
    told = {path: (blob["size"], blob["crc32"], blob["state"]) for path, blob in listed.items()}
    assert told == {path: (len(body), f"{zlib.crc32(body):08x}", "verified") for path, body in BLOBS.items()}
    assert list(listed) == sorted(BLOBS, key=str.encode)
    _, described = await house.service.get(f"/v1/runs/{RUN}")
    assert (described["state"], described["blobs"]) == ("active", len(BLOBS))
    assert described["bytes"] == sum(map(len, BLOBS.values()))

    minted = await house.service.mint("archive", {"bucket": house.bucket, "run_id": RUN})
    archive = house.directory / "run.zip"
    assert await run("curl", "-sSf", "-o", str(archive), minted["url"]) == (0, "")
    assert archive.stat().st_size == minted["size"]
    with zipfile.ZipFile(archive) as opened:
        assert {name: opened.read(name) for name in opened.namelist()} == BLOBS
    uris = [blob["uri"] for blob in listed.values()]
    assert await _batch(house, [*uris, "blob:junk"]) == [*(BLOBS[path] for path in listed), None]

    link = await house.service.mint("blob", {"bucket": house.bucket, "key": f"runs/{RUN}/logs/a.txt"})
    assert (await house.service.delete(f"/v1/runs/{RUN}"))[0] == 202
    for url, refused in ((link["url"], "404"), (minted["url"], "410")):
        _, printed = await run("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", url)
        assert printed in {"404", refused}
    assert await _batch(house, uris) == [None] * len(uris)
    assert await house.verified(RUN, state="all") == {}
    order = {"run_id": RUN, "path": "late.bin", "bucket": house.bucket}
    status, problem = await house.service.post("/v1/uploads", order)
    assert (status, problem["code"]) == (409, "run-deleted")

    async def deleted() -> bool:
        return (await house.service.get(f"/v1/runs/{RUN}"))[1]["state"] == "deleted"

    await until(deleted)
    assert (await house.service.delete(f"/v1/runs/{RUN}"))[0] == 202


async def test_every_command_of_an_operator_works(house: House) -> None:
    operator = house.operator
    await house.upload("kept", "a.bin", b"kept")
    await house.upload("gone", "a.bin", b"gone")

    async def there() -> bool:
        return bool(await house.verified("kept")) and bool(await house.verified("gone"))

    await until(there)
    assert (await house.service.delete("/v1/runs/gone"))[0] == 202

    async def deleted() -> bool:
        return (await house.service.get("/v1/runs/gone"))[1]["state"] == "deleted"

    await until(deleted)
    assert (await operator.ask("check-config")).code == 0
    for job in JOBS:
        *_, result = await operator.tell("job", job, "--limit", "10")
        assert result["job"] == job
    assert await operator.dead_letters() == []
    assert await operator.tell("dead-letters", "replay") == [{"replayed": 0}]
    before = await house.answers()
    file = house.directory / "backup.ndjson"
    (exported,) = await operator.tell("state", "export", str(file))
    for program in house.service.programs:
        if program is not house.service.manager:
            assert await program.stop() == 0
    house.state.rename(house.directory / "lost.db")
    for leftover in house.state.parent.glob("state.db-*"):
        leftover.unlink()
    (imported,) = await operator.tell("state", "import", str(file))
    assert imported["imported"] == exported["exported"] > 0
    again = await operator.ask("state", "import", str(file))
    assert again.code == 1, "the state is not empty any more"
    for program in house.service.programs:
        if program is not house.service.manager:
            await program.start()
    assert await house.answers() == before
    assert await operator.tell("run", "clear-tombstone", "gone") == [{"run_id": "gone", "cleared": True}]
    await house.upload("gone", "a.bin", b"it is back")

    async def back() -> bool:
        return bool(await house.verified("gone"))

    await until(back)


async def test_a_process_is_not_ready_while_the_state_is_away(house: House) -> None:
    working = [program for program in house.service.programs if program is not house.service.manager]
    away = house.directory / "away.db"
    house.state.rename(away)
    for program in working:
        await until(lambda program=program: _is_red(program))
    away.rename(house.state)
    for program in working:
        await until(program.ready)


async def _is_red(program: Program) -> bool:
    status, answer = await get_json(f"{program.health_url}/health/ready")
    return status == 503 and "state" in " ".join(answer["degraded"])


async def _batch(house: House, uris: Sequence[str]) -> list[bytes | None]:
    """The parts of a batch as curl gets them; None for one that is a problem."""
    answer, head = house.directory / "batch", house.directory / "batch.head"
    url = f"{house.service.client_urls[0]}/blob-batch"
    options = ["-H", "Content-Type: application/json", "-d", json.dumps({"uris": list(uris)}), "-D", str(head)]
    assert await run("curl", "-sSf", "-o", str(answer), *options, url) == (0, "")
    found = re.search(r'boundary="?([^"\r\n;]+)', head.read_text())
    assert found is not None
    parts = answer.read_bytes().split(b"--" + found[1].encode())[1:-1]
    heads = [part.partition(b"\r\n\r\n")[0] for part in parts]
    assert [int(re.findall(rb'name="(\d+)"', head)[0]) for head in heads] == list(range(len(uris)))
    return [
        None if b"problem+json" in head else part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
        for head, part in zip(heads, parts, strict=True)
    ]
