"""What must hold of ingestion and lifecycle, at small sizes: real programs, a real Kafka and a real S3 server.

`make soak` causes the same faults at full size. Most of their time is waiting (for a session of Kafka's to end, for a
second pass), so those that leave the servers alone run side by side.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support import zip_readers
from tests.support.deployment import Backing
from tests.support.programs import ROOT
from tools.soak import kills
from tools.soak.__main__ import FAULTS
from tools.soak.record import Record, Scale

STOPS = ("kafka-stopped", "s3-stopped")
"""They stop a server, which the others need."""
AT_ONCE = 3
ORPHAN_STEPS = {"orphan-claimed", "orphan-deleted"}

Running = Mapping[str, "asyncio.Task[Record]"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(
    request: pytest.FixtureRequest, backing: Backing, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    """Those faults of the chosen tests that run side by side."""
    zip_readers.program("curl")
    places = asyncio.Semaphore(AT_ONCE)
    directory = tmp_path_factory.mktemp("faults")

    async def run(name: str) -> Record:
        async with places:
            return await caused(name, backing, directory / name)

    chosen = [
        item.callspec.params["name"]
        for item in request.session.items
        if item.path == Path(__file__) and hasattr(item, "callspec")
    ]
    tasks = {name: asyncio.create_task(run(name)) for name in chosen if name not in STOPS}
    yield tasks
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


async def caused(name: str, backing: Backing, directory: Path) -> Record:
    record = Record()
    await FAULTS[name](backing, Scale(quick=True), record, directory)
    return record


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", sorted(FAULTS, key=lambda name: name in STOPS))
async def test_all_is_settled_after(name: str, backing: Backing, running: Running, tmp_path: Path) -> None:
    if name in STOPS:
        await asyncio.gather(*running.values(), return_exceptions=True)
        record = await caused(name, backing, tmp_path / name)
    else:
        record = await running[name]
    assert record.passed, [f"{each.what}: {each.seen}" for each in record.figures if each.holds is False] or record


def test_something_is_killed_at_every_labelled_step() -> None:
    labelled = {
        name
        for path in (ROOT / "storage_proxy").rglob("*.py")
        for name in re.findall(r"\bstep\(\"([a-z-]+)\"\)", path.read_text("utf-8"))
    }
    assert labelled == {*kills.INGEST_STEPS, *kills.CONTROL_STEPS, *kills.PROXY_STEPS, *ORPHAN_STEPS}
