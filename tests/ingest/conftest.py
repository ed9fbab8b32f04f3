"""The write path on a real SQLite file."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.ingest import WritePath
from tests.support.state import sqlite_store


@pytest.fixture
async def path(tmp_path: Path) -> AsyncIterator[WritePath]:
    async with sqlite_store(tmp_path / "state.db") as store:
        yield WritePath(store)
