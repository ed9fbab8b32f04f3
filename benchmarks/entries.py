"""An archive of very many entries: what its mint takes of time, memory and turns, and how soon a Range at its end
begins.
"""

import asyncio
import base64
import json
import os
import re
import statistics
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from isal.isal_zlib import crc32

from benchmarks.asking import Asker, Request
from benchmarks.client import content, download
from benchmarks.efforts import watched
from benchmarks.figures import Figures
from benchmarks.kernel import memory, peak_memory, reset_peak_memory
from benchmarks.peers import LINK_SECONDS
from benchmarks.processes import BenchmarkError
from benchmarks.programs import Programs, configured
from benchmarks.seeding import paths_of
from benchmarks.storage import BLOBS, BUCKET, WORKSPACE, Storage, ensure_bucket, remove_state, running_storage
from storage_proxy.common.concurrency import cancel_and_wait

SUBJECT = "entries"
ACCESS_LOG = WORKSPACE / "entries-access.log"
STATE = WORKSPACE / "entries.db"
BODY = bytes(100)
MINT_SECONDS = 600.0
"""The manager waits no longer for a plan (`proxy.rpc_plan_timeout_seconds`)."""
WARM_RANGES = 20
DIRECTORY_BYTES, BLOBS_BYTES = 65_536, 4_096
COLD, WARM = "cold ms", "warm ms"
USUAL, SLOWEST = "99 of 100 answers to others ms", "slowest answer to others ms"
OTHERS_PAUSE_SECONDS = 0.01
DIRECTORY = f"Range: the last {DIRECTORY_BYTES // 1024} KiB (central directory)"
LAST_BLOBS = f"Range: the last blobs, {BLOBS_BYTES // 1024} KiB"
_OPERATION = re.compile(rb" s3_(\w+) ")
_LOGGED_SECONDS = 2.0


async def compare(storage: Storage, rounds: int, *, count: int) -> Figures:
    """``count`` objects beneath a prefix: minted once and again, then ranges in a process that has just started.

    ``storage`` is set aside: an S3 server of its own writes the requests down.
    """
    figures = Figures(SUBJECT, rounds)
    await ensure_bucket(storage)
    prefix = f"entries-{count}/"
    await asyncio.to_thread(_place, prefix, count)
    remove_state(STATE)
    async with running_storage(access_log=ACCESS_LOG) as logged:
        settings: dict[str, dict[str, float]] = {
            "mint": {"crc32_seconds": MINT_SECONDS},
            "limits": {"max_archive_entries": count},
        }
        programs = configured(logged, STATE, settings=settings)
        async with programs.proxy("serve") as pid, programs.manager():
            for what in (f"mint {count:,} entries", "the same once more"):
                url = await _minted(figures, what, programs, pid, prefix, count)
            ranges = {DIRECTORY: f"-{DIRECTORY_BYTES}", LAST_BLOBS: await _last_blobs(url)}
        for _ in range(rounds):
            for what, wanted in ranges.items():
                async with programs.proxy("serve"):
                    cold, *warm = [await _first_byte_ms(url, wanted) for _ in range(1 + WARM_RANGES)]
                figures.add(what, COLD, cold)
                figures.add(what, WARM, statistics.median(warm))
    return figures


def _place(prefix: str, count: int) -> None:
    """Files with the metadata that the S3 server would have written: ETag, and the CRC-32 of the content."""
    root = BLOBS / BUCKET / prefix
    paths = paths_of(count)
    if (root / paths[-1]).exists():
        return
    etag = f'"{crc32(BODY):032x}"'.encode()
    checksum = base64.b64encode(struct.pack(">I", crc32(BODY))).decode()
    checksums = json.dumps({"Algorithm": "CRC32", "Type": "FULL_OBJECT", "CRC32": checksum}).encode()
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(BODY)
        os.setxattr(file, "user.etag", etag)
        os.setxattr(file, "user.checksums", checksums)


async def _minted(figures: Figures, what: str, programs: Programs, pid: int, prefix: str, count: int) -> str:
    """The URL of the archive of ``prefix``."""
    logged = await _logged()
    wanted = {"bucket": BUCKET, "prefix": prefix, "expires_in": LINK_SECONDS}
    before = memory(pid)
    reset_peak_memory(pid)
    async with (
        Asker(programs.manager_url, programs.api_key, seconds=MINT_SECONDS) as manager,
        _others(programs) as others,
    ):
        with watched(count, pid) as watch:
            link = await manager.ask(Request("POST", "/v1/tokens/archive", wanted))
    if link["entries"] != count or not link["resumable"]:
        raise BenchmarkError(f"of {count} entries {link['entries']} were minted, resumable: {link['resumable']}")
    effort = watch.efforts[0]
    figures.add(what, "seconds", effort.seconds)
    figures.add(what, "CPU s of the proxy", effort.cpu_seconds)
    figures.add(what, "memory, bytes an entry", (peak_memory(pid) - before) / count)
    waited = sorted(others.seconds)
    figures.add(what, USUAL, waited[len(waited) * 99 // 100] * 1e3)
    figures.add(what, SLOWEST, waited[-1] * 1e3)
    for operation, requests in sorted((await _logged() - logged).items()):
        figures.add(what, f"requests: {operation}", requests)
    url: str = link["url"]
    return url


@dataclass(slots=True)
class Others:
    """Those who want something small of the same process meanwhile, and how long each answer took."""

    seconds: list[float] = field(default_factory=list)


@asynccontextmanager
async def _others(programs: Programs) -> AsyncIterator[Others]:
    """Ask whether the proxy is alive, again and again, while entered."""
    others = Others()

    async def ask() -> None:
        async with Asker(programs.operations_url) as asker:
            while True:
                began = time.perf_counter()
                await asker.ask(Request("GET", "/health/live"))
                others.seconds.append(time.perf_counter() - began)
                await asyncio.sleep(OTHERS_PAUSE_SECONDS)

    asking = asyncio.create_task(ask())
    try:
        yield others
        if asking.done():
            asking.result()
    finally:
        await cancel_and_wait(asking)


async def _logged() -> Counter[str]:
    """How many requests of each kind the S3 server has written down, once it writes no more."""
    size = -1
    while size != (size := ACCESS_LOG.stat().st_size if ACCESS_LOG.exists() else 0):
        await asyncio.sleep(_LOGGED_SECONDS)
    log = ACCESS_LOG.read_bytes() if size else b""
    return Counter(operation.decode() for operation in _OPERATION.findall(log))


async def _first_byte_ms(url: str, wanted: str) -> float:
    done = await asyncio.to_thread(download, url, bytes_range=wanted)
    return done.first_byte_seconds * 1e3


async def _last_blobs(url: str) -> str:
    """The range of the last bytes before the central directory, found as an unzip program does (APPNOTE 4.3.14-16)."""
    end = await asyncio.to_thread(content, url, f"-{DIRECTORY_BYTES}")
    if (record := end.rfind(b"PK\x06\x06")) >= 0:
        (directory,) = struct.unpack_from("<Q", end, record + 48)
    else:
        (directory,) = struct.unpack_from("<I", end, end.rindex(b"PK\x05\x06") + 16)
    return f"{directory - BLOBS_BYTES}-{directory - 1}"
