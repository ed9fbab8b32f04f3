"""What must hold of ingestion and lifecycle, at small sizes: real programs, a real Kafka and a real S3 server.

`make soak` causes the same faults at full size.
"""

import re
from pathlib import Path

import pytest

from tests.support import zip_readers
from tests.support.deployment import Backing
from tests.support.programs import ROOT
from tools.soak import kills
from tools.soak.__main__ import FAULTS
from tools.soak.record import Record, Scale

ORPHAN_STEPS = {"orphan-claimed", "orphan-deleted"}


@pytest.mark.parametrize("name", FAULTS)
async def test_all_is_settled_after(name: str, backing: Backing, tmp_path: Path) -> None:
    zip_readers.program("curl")
    record = Record()
    await FAULTS[name](backing, Scale(quick=True), record, tmp_path / "deployment")
    assert record.passed, [f"{each.what}: {each.seen}" for each in record.figures if each.holds is False] or record


def test_something_is_killed_at_every_labelled_step() -> None:
    labelled = {
        name
        for path in (ROOT / "storage_proxy").rglob("*.py")
        for name in re.findall(r"\bstep\(\"([a-z-]+)\"\)", path.read_text("utf-8"))
    }
    assert labelled == {*kills.INGEST_STEPS, *kills.CONTROL_STEPS, *kills.PROXY_STEPS, *ORPHAN_STEPS}
