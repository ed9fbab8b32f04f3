"""Two buckets that are one place: a blob of one is no orphan of the other. Real state, bus and local buckets."""

import os
from pathlib import Path
from typing import Any

import pytest

from storage_proxy.common.errors import StorageError
from storage_proxy.runtime.jobs import clean_up
from storage_proxy.settings import ProxySettings
from tests.support.proxy import settings_of

S3 = {"kind": "s3", "endpoint": "http://127.0.0.1:1", "bucket": "b", "access_key": "k", "secret_key": "s"}


def settings(tmp_path: Path, **roots: Path) -> ProxySettings:
    buckets = {name: {"kind": "local", "root": str(root)} for name, root in roots.items()}
    state, bus = {"path": str(tmp_path / "state.db")}, {"path": str(tmp_path / "bus.db")}
    return settings_of(buckets, state=state, bus=bus)


@pytest.mark.parametrize("other", [".", "runs", "runs/r2", "alias"])
async def test_cleanup_orphans_refuses_buckets_that_hold_each_others_runs(tmp_path: Path, other: str) -> None:
    root = tmp_path / "blobs"
    (root / "runs/r2").mkdir(parents=True)
    (root / "alias").symlink_to(root)
    blob = root / "runs/r2/runs"
    blob.write_bytes(b"perhaps recorded under the other name")
    os.utime(blob, (0, 0))
    with pytest.raises(StorageError, match="are one place"):
        await clean_up(
            "cleanup-orphans",
            settings(tmp_path, default=root, other=root / other),
            dry_run=False,
            limit=None,
            report=lambda _: None,
        )
    assert blob.exists()


@pytest.mark.parametrize(
    ("first", "second", "is_one"),
    [
        ({}, {}, True),
        ({"prefix": "a/"}, {"prefix": "a/"}, True),
        ({}, {"prefix": "runs/"}, True),
        ({"prefix": "a/runs/b/"}, {"prefix": "a/"}, True),
        ({}, {"delivery": "redirect"}, True),
        ({}, {"prefix": "a/"}, False),
        ({"prefix": "a"}, {"prefix": "ab"}, False),
        ({}, {"bucket": "another"}, False),
        ({}, {"endpoint": "http://127.0.0.1:2"}, False),
    ],
)
def test_buckets_of_s3_are_one_place_where_their_runs_meet(
    first: dict[str, Any], second: dict[str, Any], is_one: bool
) -> None:
    found = settings_of({"a": {**S3, **first}, "b": {**S3, **second}}).one_place()
    assert (found is not None) == is_one
