"""Presigned uploads, announced: how many a second of CPU time, through the manager and through the RPC alone."""

from collections.abc import Sequence

from benchmarks.asking import Asker, Request
from benchmarks.efforts import Efforts, watched
from benchmarks.peers import obvious
from benchmarks.programs import configured
from benchmarks.storage import BUCKET, WORKSPACE, Storage, ensure_bucket, remove_state

STATE = WORKSPACE / "presigns.db"
AT_ONCE = 64
RUNS = 32
CASE = "presign"


async def compare(storage: Storage, rounds: int, *, count: int) -> Efforts:
    """``count`` presigns each way in each round, 64 at once. No relay runs, so the outbox grows."""
    efforts = Efforts(rounds)
    await ensure_bucket(storage)
    remove_state(STATE)
    programs = configured(storage, STATE)
    async with (
        programs.proxy("serve") as proxy,
        programs.manager() as manager,
        obvious(storage) as other,
        Asker(programs.rpc_url, programs.rpc_secret) as rpc,
        Asker(programs.manager_url, programs.api_key) as api,
        Asker(other.url) as obvious_api,
    ):
        for number in range(-1, rounds):  # the first warms up
            wanted = min(count, 500) if number < 0 else count
            with watched(wanted, proxy) as by_rpc:
                await rpc.ask_all(_orders("/rpc/v1/uploads", f"{number}/rpc", wanted), at_once=AT_ONCE)
            with watched(wanted, proxy, manager) as by_api:
                await api.ask_all(_orders("/v1/uploads", f"{number}/api", wanted), at_once=AT_ONCE)
            with watched(wanted, other.pid) as by_obvious:
                await obvious_api.ask_all(_orders("/uploads", f"{number}", wanted), at_once=AT_ONCE)
            if number >= 0:
                efforts.add(CASE, "RPC: the proxy", by_rpc.efforts[0])
                efforts.add(CASE, "manager API: the proxy", by_api.efforts[0])
                efforts.add(CASE, "manager API: the manager", by_api.efforts[1])
                efforts.add(CASE, "obvious, announced to nobody", by_obvious.efforts[0])
    return efforts


def _orders(path: str, folder: str, count: int) -> Sequence[Request]:
    return [
        Request(
            "POST",
            path,
            {
                "run_id": f"presigned-{number % RUNS:02}",
                "path": f"{folder}/{number:07}.bin",
                "bucket": BUCKET,
                "content_type": "application/octet-stream",
                "size": 1_000_000,
                "crc32": f"{number:08x}",
                "expires_in": 900,
            },
        )
        for number in range(count)
    ]
