"""The worker on a real embedded bus, with a real SQLite file and a real local bucket: verify, bury, replay."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from storage_proxy.bus.dead_letters import REASON_HEADER, pending_letters, replay
from storage_proxy.bus.embedded import EmbeddedBus, EmbeddedOptions, open_embedded_bus
from storage_proxy.bus.port import Event
from storage_proxy.ingest.worker import IngestWorker
from storage_proxy.state.records import BlobState
from storage_proxy.stores.local import LocalBlobStore
from tests.support.ingest import TOPIC, WritePath, crc32_of, reference
from tests.support.state import sqlite_store

GROUP = "ingest"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "blobs/runs/r1").mkdir(parents=True)
    return tmp_path / "blobs"


@pytest.fixture
async def path(tmp_path: Path, root: Path) -> AsyncIterator[WritePath]:
    bucket = LocalBlobStore(root)
    async with sqlite_store(tmp_path / "state.db") as store:
        yield WritePath(store, buckets={"media": bucket})
    await bucket.aclose()


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[EmbeddedBus]:
    async with open_embedded_bus(EmbeddedOptions(tmp_path / "bus.db", partitions=2)) as opened:
        yield opened


def worker(path: WritePath, bus: EmbeddedBus) -> IngestWorker:
    return IngestWorker(bus, path.verifier, path.recorder, path.buckets, options=path.options, metrics=path.metrics)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.01)


async def test_references_are_verified_buried_and_replayed(path: WritePath, bus: EmbeddedBus, root: Path) -> None:
    async def states() -> set[BlobState]:
        return {blob.state for blob in (await path.blobs()).values()}

    async def all_consumed() -> bool:
        positions = await bus.positions(TOPIC, GROUP)
        return all(each.committed == each.end for each in positions)

    for name in ("a", "b"):
        (root / f"runs/r1/{name}").write_bytes(b"content")
    right = reference("r1", "a", size=7, crc32=crc32_of(b"content"))
    wrong = reference("r1", "b", crc32=crc32_of(b"other"))
    await bus.publish(TOPIC, [Event("r1", right), Event("r1", wrong), Event("r1", b"junk")])
    async with bus.consume(TOPIC, GROUP, worker(path, bus).handle):
        await until(all_consumed)
        assert await states() == {BlobState.VERIFIED, BlobState.REJECTED}
        letters = [letter async for batch in pending_letters(bus, TOPIC) for letter in batch]
        assert {letter.value for letter in letters} == {wrong, b"junk"}
        assert all(letter.headers[REASON_HEADER] for letter in letters)
        (root / "runs/r1/b").write_bytes(b"other")
        assert await replay(bus, TOPIC) == 2
        await until(all_consumed)
        assert await states() == {BlobState.VERIFIED}
        letters = [letter async for batch in pending_letters(bus, TOPIC) for letter in batch]
        assert [letter.value for letter in letters] == [b"junk"]
