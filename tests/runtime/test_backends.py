"""How the files of an embedded service are made, on a real file system."""

import stat
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from storage_proxy.common.errors import BusUnavailable, StateUnavailable
from storage_proxy.runtime.backends import open_bus, open_state
from tests.support.proxy import local_settings


async def test_the_files_and_their_directory_are_made_for_the_owner_alone(tmp_path: Path) -> None:
    settings = local_settings(
        tmp_path,
        state={"path": str(tmp_path / "var" / "state.db")},
        bus={"path": str(tmp_path / "var" / "bus.db")},
    )
    async with AsyncExitStack() as stack:
        await open_state(settings, stack)
        await open_bus(settings, stack)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "var").iterdir()}
    assert {"state.db", "bus.db", "state.db-wal"} <= modes.keys()
    assert set(modes.values()) == {0o600}


async def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    where = str(tmp_path / "file" / "below.db")
    settings = local_settings(tmp_path, state={"path": where}, bus={"path": where})
    async with AsyncExitStack() as stack:
        with pytest.raises(StateUnavailable, match=r"below\.db cannot be made"):
            await open_state(settings, stack)
        with pytest.raises(BusUnavailable, match=r"below\.db cannot be made"):
            await open_bus(settings, stack)
