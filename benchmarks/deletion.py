"""A large run's end: from the request to its being hidden, and to its last object's removal."""

import asyncio
import os
import shutil
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.asking import Asker, Request
from benchmarks.efforts import Effort, Efforts, watched
from benchmarks.processes import BenchmarkError
from benchmarks.programs import Programs, configured
from benchmarks.seeding import paths_of, place_files, record_run
from benchmarks.storage import BLOBS, BUCKET, WORKSPACE, Storage, ensure_bucket, remove_state
from storage_proxy.common.events import run_prefix

if TYPE_CHECKING:
    from types_aiobotocore_s3.type_defs import ObjectIdentifierTypeDef

STATE = WORKSPACE / "deletion.db"
LOCAL = WORKSPACE / "local"
OBVIOUS_RUN = "deleted-obviously"
_SECONDS = 600
_LOOK_SECONDS = 0.05


async def compare(storage: Storage, rounds: int, *, count: int) -> Efforts:
    """A run of ``count`` blobs on S3 and one on a local bucket, each beside the same objects deleted by a loop."""
    efforts = Efforts(rounds)
    await ensure_bucket(storage)
    LOCAL.mkdir(parents=True, exist_ok=True)
    for number in range(rounds):
        for kind, root, obvious in (("S3", BLOBS / BUCKET, _by_sdk), ("local", LOCAL, _by_rmtree)):
            case = f"delete {count:,} blobs, {kind}"
            run = f"deleted-{number}-{time.time_ns()}"
            remove_state(STATE)
            await record_run(STATE, run, BUCKET, paths_of(count))
            await place_files(root, run, paths_of(count))
            programs = configured(storage, STATE, local_root=LOCAL if kind == "local" else None)
            hidden, gone = await _deleted(programs, run, count)
            efforts.add(case, "request to hidden: one process of all roles", hidden)
            efforts.add(case, "request to the first pass done", gone)
            _check_gone(root, run)
            await place_files(root, OBVIOUS_RUN, paths_of(count))
            with watched(count, os.getpid()) as by_loop:
                await obvious(storage)
            efforts.add(case, "obvious: a loop over the objects alone", by_loop.efforts[0])
    return efforts


async def _deleted(programs: Programs, run: str, count: int) -> tuple[Effort, Effort]:
    """What it took until the run was hidden, and until its first pass was done."""
    async with AsyncExitStack() as stack:
        pid = await stack.enter_async_context(programs.proxy("all"))
        await stack.enter_async_context(programs.manager())
        api = await stack.enter_async_context(Asker(programs.manager_url, programs.api_key))
        await api.ask(Request("GET", f"/v1/runs/{run}"))
        with watched(count, pid) as until_gone:
            with watched(1, pid) as until_hidden:
                await api.ask(Request("DELETE", f"/v1/runs/{run}"))
                if (await api.ask(Request("GET", f"/v1/runs/{run}/blobs")))["blobs"]:
                    raise BenchmarkError("a deleted run is not hidden")
            async with asyncio.timeout(_SECONDS):
                while (await api.ask(Request("GET", f"/v1/runs/{run}")))["state"] != "deleted":
                    await asyncio.sleep(_LOOK_SECONDS)
    return until_hidden.efforts[0], until_gone.efforts[0]


def _check_gone(root: Path, run: str) -> None:
    if (root / run_prefix(run)).exists():
        raise BenchmarkError("objects of a deleted run are left")


async def _by_sdk(storage: Storage) -> None:
    """Page after page, as the SDK's documentation has it."""
    async with storage.client() as client:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=run_prefix(OBVIOUS_RUN))
        async for page in pages:
            objects: list[ObjectIdentifierTypeDef] = [{"Key": blob["Key"]} for blob in page["Contents"]]
            await client.delete_objects(Bucket=BUCKET, Delete={"Objects": objects, "Quiet": True})


async def _by_rmtree(storage: Storage) -> None:
    await asyncio.to_thread(shutil.rmtree, LOCAL / run_prefix(OBVIOUS_RUN))
