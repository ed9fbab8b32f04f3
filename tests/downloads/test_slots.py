"""Bounds on running downloads."""

import pytest

from storage_proxy.common.errors import Busy, TooManyDownloads
from storage_proxy.downloads.slots import DownloadSlots


def test_a_full_process_is_busy_and_a_greedy_token_is_told_so() -> None:
    slots = DownloadSlots(max_downloads=3, max_per_token=2)
    with slots.taken("a"), slots.taken("a"):
        with pytest.raises(TooManyDownloads), slots.taken("a"):
            pass
        with slots.taken("b"), pytest.raises(Busy), slots.taken("c"):
            pass
    assert len(slots) == 0
    with slots.taken("a"):
        assert len(slots) == 1


def test_a_download_that_fails_gives_its_slot_back() -> None:
    slots = DownloadSlots(max_downloads=1, max_per_token=1)
    with pytest.raises(RuntimeError), slots.taken("a"):
        raise RuntimeError
    assert len(slots) == 0
