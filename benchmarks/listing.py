"""A large run's blobs, page after page."""

from collections.abc import Mapping
from urllib.parse import urlencode

from benchmarks.asking import Asker, Request
from benchmarks.efforts import Efforts, watched
from benchmarks.peers import obvious
from benchmarks.processes import BenchmarkError
from benchmarks.programs import configured
from benchmarks.seeding import paths_of, place_files, record_run
from benchmarks.storage import BLOBS, BUCKET, WORKSPACE, Storage, ensure_bucket, remove_state
from storage_proxy.common.events import run_prefix

STATE = WORKSPACE / "listing.db"
RUN = "listed"


async def compare(storage: Storage, rounds: int, *, count: int) -> Efforts:
    """All pages of a run of ``count`` blobs, of a thousand each: from the records, and the same objects from S3."""
    efforts = Efforts(rounds)
    case = f"list {count:,} blobs"
    run = f"{RUN}-{count}"
    await ensure_bucket(storage)
    remove_state(STATE)
    await record_run(STATE, run, BUCKET, paths_of(count))
    await place_files(BLOBS / BUCKET, run, paths_of(count))
    programs = configured(storage, STATE)
    async with (
        programs.proxy("serve") as proxy,
        programs.manager() as manager,
        obvious(storage) as other,
        Asker(programs.rpc_url, programs.rpc_secret) as rpc,
        Asker(programs.manager_url, programs.api_key) as api,
        Asker(other.url) as obvious_api,
    ):
        for _ in range(rounds):
            with watched(count, proxy) as by_rpc:
                await _list(rpc, f"/rpc/v1/runs/{run}/blobs", {}, count)
            with watched(count, proxy, manager) as by_api:
                await _list(api, f"/v1/runs/{run}/blobs", {}, count)
            with watched(count, other.pid) as by_obvious:
                await _list(obvious_api, "/blobs", {"prefix": run_prefix(run)}, count)
            efforts.add(case, "RPC: the proxy", by_rpc.efforts[0])
            efforts.add(case, "manager API: the proxy", by_api.efforts[0])
            efforts.add(case, "manager API: the manager", by_api.efforts[1])
            efforts.add(case, "obvious: a server that lists S3", by_obvious.efforts[0])
    return efforts


async def _list(asker: Asker, path: str, query: Mapping[str, str], count: int) -> None:
    listed = 0
    cursor: dict[str, str] = {}
    while True:
        page = await asker.ask(Request("GET", f"{path}?{urlencode({**query, **cursor})}"))
        listed += len(page["blobs"])
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    if listed != count:
        raise BenchmarkError(f"{listed} blobs were listed instead of {count}")
