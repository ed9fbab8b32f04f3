"""Planning archives: against real local files where files matter, a scripted store (a fake) where counting does."""

import asyncio
import os
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from storage_proxy.common.errors import (
    BlobNotFound,
    BucketNotFound,
    DuplicateName,
    RunNotFound,
    SelectionTooLarge,
    StorageError,
    StorageUnavailable,
    UnsafeName,
)
from storage_proxy.common.wire import ArchiveSelection
from storage_proxy.downloads.blobs import Blobs
from storage_proxy.downloads.cache import BytesBoundedCache
from storage_proxy.downloads.learned_crcs import LearnedCrcs
from storage_proxy.downloads.manifests import in_memory
from storage_proxy.downloads.metrics import DownloadMetrics
from storage_proxy.downloads.planner import ArchivePlanner, Plan, PlanLimits
from storage_proxy.downloads.run_blobs import RunBlobs
from storage_proxy.formats.entries import Entry
from storage_proxy.stores.buckets import Buckets
from storage_proxy.stores.local import LocalBlobStore
from storage_proxy.stores.port import BlobStat
from tests.support.runs import Runs, temporary_runs
from tests.support.scripted_store import Blob, ScriptedStore


async def plan(store: object, selection: dict[str, object], **limits: object) -> Plan:
    buckets = Buckets({"default": store, "other": ScriptedStore({"k": Blob(b"other", '"o"')})})
    async with temporary_runs() as runs:
        learned = LearnedCrcs(runs.store, runs.records, DownloadMetrics(CollectorRegistry()))
        planner = ArchivePlanner(Blobs(buckets, runs.blobs), learned, PlanLimits(**limits))
        return await planner.plan(ArchiveSelection.model_validate(selection))


async def entries(planned: Plan) -> list[Entry]:
    archive = in_memory(planned.manifest, BytesBoundedCache(1 << 20))
    return [entry for index in range(archive.head.blocks) for entry in (await archive.block(index)).block]


async def names(store: object, selection: dict[str, object], **limits: object) -> list[str]:
    return [entry.name for entry in await entries(await plan(store, selection, **limits))]


def fake(*keys: str) -> ScriptedStore:
    return ScriptedStore({key: Blob(b"" if key.endswith("/") else key.encode(), f'"{key}"') for key in keys})


def selected(*keys: str, **more: object) -> dict[str, object]:
    return {"entries": [{"key": key} for key in keys], **more}


@pytest.fixture
def local(tmp_path: Path) -> LocalBlobStore:
    for name, content in {"a/one.txt": b"one", "a/b/two.bin": b"two" * 100, "c.txt": b"sea"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "a/empty").mkdir()
    (tmp_path / ".storage-proxy/manifests").mkdir(parents=True)
    (tmp_path / ".storage-proxy/manifests/x").write_bytes(b"x")
    return LocalBlobStore(tmp_path)


async def test_a_prefix_selects_what_is_below_it_under_the_rest_of_the_key(local: LocalBlobStore) -> None:
    assert await names(local, {"prefix": "a/"}) == ["b/two.bin", "empty/", "one.txt"]


async def test_everything_is_everything_but_the_services_own_keys(local: LocalBlobStore) -> None:
    assert await names(local, {"prefix": ""}) == ["a/b/two.bin", "a/empty/", "a/one.txt", "c.txt"]


async def test_local_files_are_read_at_mint_so_every_crc_is_known(local: LocalBlobStore) -> None:
    planned = await plan(local, {"prefix": ""})
    assert {e.name: e.crc32 for e in await entries(planned)} == {
        "a/b/two.bin": zlib.crc32(b"two" * 100),
        "a/empty/": 0,
        "a/one.txt": zlib.crc32(b"one"),
        "c.txt": zlib.crc32(b"sea"),
    }
    assert planned.manifest.head.plan.unknown_crcs == 0


async def test_what_the_budget_does_not_cover_stays_unknown(local: LocalBlobStore) -> None:
    planned = await plan(local, {"prefix": ""}, crc32_read_bytes=10)
    assert {e.name for e in await entries(planned) if e.crc32 is None} == {"a/b/two.bin"}
    planned = await plan(local, {"prefix": ""}, crc32_seconds=0.0)
    assert planned.manifest.head.plan.unknown_crcs == 3


async def test_a_listing_is_asked_for_its_checksums_one_by_one_and_no_others() -> None:
    store = fake("a", "b")
    store.blobs["a"].crc32 = 7
    listed = await entries(await plan(store, {"prefix": ""}))
    assert [entry.crc32 for entry in listed] == [7, None]
    store.stats = 0
    await plan(store, selected("a", "b"))
    assert store.stats == 2


async def test_default_names_are_keys_and_given_names_win() -> None:
    assert await names(fake("x/a", "x/b"), {"entries": [{"key": "x/a"}, {"key": "x/b", "name": "seen/as.txt"}]}) == [
        "x/a",
        "seen/as.txt",
    ]


async def test_entries_may_come_from_several_buckets() -> None:
    planned = await plan(fake("k"), {"entries": [{"key": "k"}, {"key": "k", "bucket": "other", "name": "o"}]})
    assert [(e.bucket, e.name, e.size) for e in await entries(planned)] == [("default", "k", 1), ("other", "o", 5)]


async def test_the_same_bucket_key_and_name_twice_is_one_entry() -> None:
    assert await names(fake("a"), selected("a", "a")) == ["a"]
    two = {"entries": [{"key": "a"}, {"key": "a", "name": "b"}, {"key": "a", "bucket": "default"}]}
    assert await names(fake("a"), two) == ["a", "b"]


async def test_portable_names_suit_windows_and_exact_names_stay() -> None:
    keys = ["ab:c?.txt", "con.txt", "dot.", "lpt9", "sp ace "]
    wanted = selected(*keys)
    assert await names(fake(*keys), wanted) == ["ab_c_.txt", "con_.txt", "dot_", "lpt9_", "sp ace_"]
    assert await names(fake(*keys), {**wanted, "names": "exact"}) == keys


async def test_names_of_listed_keys_are_made_safe_and_never_refused() -> None:
    store = fake("p/../up", "p//double", "p/a\\b", "p/ok", "p/\x07bell", "p/")
    assert sorted(await names(store, {"prefix": "p/"})) == ["_/double", "_/up", "_bell", "a_b", "ok"]


async def test_a_key_that_ends_in_a_slash_is_a_folder_only_when_it_is_empty() -> None:
    store = fake("f/", "g/")
    store.blobs["g/"].content = b"content"
    assert await names(store, selected("f/", "g/")) == ["f/", "g"]


async def test_every_missing_key_is_named() -> None:
    with pytest.raises(BlobNotFound) as caught:
        await plan(fake("a"), selected("x", "a", "y"))
    assert [(error["loc"], error.get("key")) for error in caught.value.errors] == [
        (["entries", 0, "key"], "x"),
        (["entries", 2, "key"], "y"),
    ]


async def test_missing_blobs_may_be_skipped_and_are_listed_in_a_last_entry() -> None:
    planned = await plan(fake("a", "MISSING.txt"), selected("x", "a", "MISSING.txt", on_missing="skip"))
    assert [skipped.key for skipped in planned.skipped] == ["x"]
    listed = await entries(planned)
    assert [entry.name for entry in listed] == ["a", "MISSING.txt", "MISSING (2).txt"]
    archive = in_memory(planned.manifest, BytesBoundedCache(1 << 20))
    assert await archive.own_text(0, listed[-1].size) == b"x\tdoes not exist\n"
    again = await plan(fake("a", "MISSING.txt"), selected("x", "a", "MISSING.txt", on_missing="skip"))
    assert again.manifest.head.name == planned.manifest.head.name


async def test_the_services_own_keys_are_missing() -> None:
    with pytest.raises(BlobNotFound):
        await plan(fake(".storage-proxy/manifests/x"), selected(".storage-proxy/manifests/x"))


@pytest.mark.parametrize("store", [fake(), fake(".storage-proxy/x")])
async def test_a_prefix_that_selects_nothing_is_not_found(store: ScriptedStore) -> None:
    with pytest.raises(BlobNotFound):
        await plan(store, {"prefix": ""})


async def test_too_many_entries_are_refused_given_or_listed() -> None:
    with pytest.raises(SelectionTooLarge):
        await plan(fake("a", "b", "c"), selected("a", "b", "c"), max_entries=2)
    with pytest.raises(SelectionTooLarge):
        await plan(fake("a", "b", "c"), {"prefix": ""}, max_entries=2)
    assert len(await names(fake("a", "b"), {"prefix": ""}, max_entries=2)) == 2


async def test_duplicates_are_refused_when_asked() -> None:
    with pytest.raises(DuplicateName):
        await plan(fake("a", "A"), selected("a", "A", on_duplicate="fail"))


@pytest.mark.parametrize("key", ["../x", "/x", "a\\b", "a\x00", "", "a/../b", "x" * 5000])
async def test_unsafe_keys_are_refused_before_anything_is_read(key: str) -> None:
    store = fake("a")
    with pytest.raises(UnsafeName):
        await plan(store, selected("a", key))
    assert store.stats == 0


@pytest.mark.parametrize("more", [{"format": "tar"}, {"compression": "deflate"}])
async def test_nothing_is_asked_for_crc32s_that_no_range_needs(more: dict[str, str]) -> None:
    store = fake("a", "b")
    planned = await plan(store, {"prefix": "", **more})
    assert planned.manifest.head.plan.entries == 2
    assert (store.stats, store.opened) == (2, [])  # the listing's own; a stored zip has 2 more


async def test_an_unknown_bucket_is_refused() -> None:
    with pytest.raises(BucketNotFound):
        await plan(fake("a"), selected("a", bucket="nowhere"))


@pytest.mark.parametrize("selection", [{"prefix": ""}, selected("a", "b")], ids=["prefix", "entries"])
async def test_a_blob_without_an_etag_fails_the_plan(selection: dict[str, object]) -> None:
    """Nothing would notice that a later download has another version of it."""
    with pytest.raises(StorageError, match="no ETag"):
        await plan(ScriptedStore({"a": Blob(b"a", '"a"'), "b": Blob(b"b", "")}), selection)


async def test_a_store_that_fails_fails_the_plan() -> None:
    class Failing(ScriptedStore):
        async def stat(self, key: str) -> None:
            raise StorageUnavailable

    with pytest.raises(StorageUnavailable):
        await plan(Failing(), selected("a", "b"))


async def test_a_name_that_is_not_utf_8_is_made_safe(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad-\xff.txt")).write_bytes(b"x")
    planned = await plan(LocalBlobStore(tmp_path), {"prefix": ""})
    (entry,) = await entries(planned)
    assert entry.name == "bad-_.txt"
    assert os.fsencode(entry.key) == b"bad-\xff.txt"


async def test_blobs_that_vanish_after_the_listing_are_missing_in_the_order_of_their_keys() -> None:
    class Vanishing(ScriptedStore):
        async def stat(self, key: str) -> BlobStat | None:
            for _ in range(hash(key) % 7):
                await asyncio.sleep(0)
            return None if self.listed and key[-1] in "13579" else await super().stat(key)

        async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Sequence[BlobStat]]:
            self.listed = False
            async for page in super().list(prefix, start_after=start_after):
                self.listed = True
                yield page

    store = Vanishing(fake(*(f"p/{index:02}" for index in range(40))).blobs)
    planned = await plan(store, {"prefix": "p/", "on_missing": "skip"})
    assert [skipped.key for skipped in planned.skipped] == [f"p/{index:02}" for index in range(1, 40, 2)]
    with pytest.raises(BlobNotFound) as caught:
        await plan(store, {"prefix": "p/"})
    assert caught.value.errors[0] == {"loc": ["prefix"], "msg": "does not exist", "key": "p/01"}


def test_a_list_of_wrong_things_is_refused_at_its_first() -> None:
    with pytest.raises(ValidationError) as caught:
        ArchiveSelection.model_validate({"entries": [1] * 50_000})
    assert caught.value.error_count() == 1


@asynccontextmanager
async def planning(store: object) -> AsyncIterator[tuple[Runs, Callable[..., Awaitable[Plan]]]]:
    """A state, and what plans by it."""
    async with temporary_runs() as runs:
        learned = LearnedCrcs(runs.store, runs.records, DownloadMetrics(CollectorRegistry()))
        blobs = Blobs(Buckets({"default": store}), runs.blobs)  # type: ignore[dict-item]

        async def planned(selection: dict[str, object], **limits: object) -> Plan:
            planner = ArchivePlanner(blobs, learned, PlanLimits(**limits))  # type: ignore[arg-type]
            return await planner.plan(ArchiveSelection.model_validate(selection))

        yield runs, planned


async def test_a_local_file_is_read_for_its_crc_once(local: LocalBlobStore) -> None:
    async with planning(local) as (_, planned):
        assert (await planned({"prefix": ""})).manifest.head.plan.unknown_crcs == 0
        again = await planned({"prefix": ""}, crc32_read_bytes=0, crc32_seconds=0.0)
        assert again.manifest.head.plan.unknown_crcs == 0
        named = await planned(selected("c.txt"), crc32_read_bytes=0)
        assert [entry.crc32 for entry in await entries(named)] == [zlib.crc32(b"sea")]


async def test_a_run_is_planned_from_its_records_without_a_request(local: LocalBlobStore) -> None:
    store = fake("runs/r1/orphan")
    async with planning(store) as (runs, planned):
        for path in ("b", "a/x", "a/y"):
            await runs.record("r1", path, crc32=7)
        await runs.record("r1", "unknown", crc32=None)
        plan = await planned({"run_id": "r1"})
        assert [(entry.name, entry.key, entry.crc32) for entry in await entries(plan)] == [
            ("a/x", "runs/r1/a/x", 7),
            ("a/y", "runs/r1/a/y", 7),
            ("b", "runs/r1/b", 7),
            ("unknown", "runs/r1/unknown", None),
        ]
    assert store.stats == 0


async def test_a_manifest_names_the_runs_of_its_blobs() -> None:
    async with planning(fake("own")) as (runs, planned):
        await runs.record("r2", "p")
        await runs.record("r1", "p")
        assert (await planned({"prefix": ""})).manifest.head.runs == ("r1", "r2")
        assert (await planned(selected("own", "runs/r2/p"))).manifest.head.runs == ("r2",)
        assert (await planned(selected("own"))).manifest.head.runs == ()


async def test_a_run_that_is_deleted_while_it_is_planned_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async with planning(fake()) as (runs, planned):
        await runs.record("r1", "p")
        list_before = RunBlobs.listed

        async def listed(self: RunBlobs, bucket: str, prefix: str) -> AsyncIterator[Sequence[BlobStat]]:
            async for page in list_before(self, bucket, prefix):
                yield page
                await runs.delete("r1")

        monkeypatch.setattr(RunBlobs, "listed", listed)
        with pytest.raises(RunNotFound):
            await planned({"run_id": "r1"})


async def test_blobs_of_too_many_runs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage_proxy.downloads.planner.MAX_RUNS", 1)
    async with planning(fake()) as (runs, planned):
        await runs.record("r1", "p")
        assert (await planned({"prefix": ""})).manifest.head.runs == ("r1",)
        await runs.record("r2", "p")
        with pytest.raises(SelectionTooLarge):
            await planned({"prefix": ""})
