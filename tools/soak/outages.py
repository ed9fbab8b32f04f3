"""The S3 server is killed while archives are downloaded: back in time, nobody notices; not back, everybody does.

The blobs are larger than what the buffers between S3 and a client hold: a kill always leaves something to read.
"""

import asyncio
import random
from collections import Counter
from pathlib import Path

from tests.support.programs import Service, run, service
from tools.soak.files import digest_of, size_of, until_longer
from tools.soak.record import Record, Scale, mib
from tools.soak.s3 import bucket_over, filled
from tools.soak.watch import metric

_SEED = 4
_BROKEN_EXITS = frozenset({18, 56, 92})
"""Of curl: a body shorter than its length, a failed receive, a broken HTTP/2 stream."""
_RATE = "8M"
_AT_ONCE = 3


async def downloads_survive_restarts(scale: Scale, record: Record, directory: Path) -> None:
    """30 downloads while the server is killed and restarted at random moments."""
    rng, downloads = random.Random(_SEED), scale.of(30, 2)
    record.did(
        f"{downloads} downloads of an archive from S3 at {_RATE}B/s, {_AT_ONCE} at once, while the S3 server is killed "
        f"(SIGKILL) at random moments and restarted after 0 to 1.5 s (seed {_SEED})."
    )
    async with filled(directory / "s3", rng, blobs=3, size=scale.of(24 << 20, 10 << 20)) as server:
        buckets = {"media": bucket_over(server)}
        async with service(directory / "programs", buckets, more="[heal]\nattempts = 60\nseconds = 30") as running:
            url, digest = await _reference(running, directory, record)
            kills, whole, failures = 0, 0, []
            for first in range(0, downloads, _AT_ONCE):
                paths = [directory / f"{index}.zip" for index in range(first, min(first + _AT_ONCE, downloads))]
                fetching = asyncio.gather(*(_curl(url, path) for path in paths))
                await until_longer(paths, 0)
                while not fetching.done():
                    await asyncio.sleep(rng.uniform(0, 0.5))
                    if fetching.done():
                        break
                    await server.kill()
                    kills += 1
                    await asyncio.sleep(rng.uniform(0, 1.5))
                    await server.start()
                    await asyncio.sleep(rng.uniform(0.2, 1.0))
                for path, (code, printed) in zip(paths, await fetching, strict=True):
                    if code == 0 and digest_of(path) == digest:
                        whole += 1
                    else:
                        failures.append(f"curl exits {code}: {printed.strip()[:200]}")
                    path.unlink(missing_ok=True)
            record.saw("kills and restarts", kills, holds=kills > 0)
            reopened = await metric(running.proxies[0], "storage_proxy_upstream_reopened_total")
            record.saw(
                "reads that the proxy resumed at their offset", f"{reopened:,.0f}", holds=reopened >= scale.of(1, 0)
            )
            seen = f"{whole} of {downloads}" + "".join(f"; {each}" for each in failures[:5])
            record.saw("complete, with an equal sha256", seen, holds=whole == downloads)


async def downloads_fail_visibly(scale: Scale, record: Record, directory: Path) -> None:
    """The server is killed for good during downloads over HTTP/1.1 and HTTP/1.0."""
    rng, each = random.Random(_SEED), scale.of(15, 2)
    record.did(
        f"{each} downloads over HTTP/1.1 and {each} over HTTP/1.0, {_AT_ONCE} at once, while the S3 server is killed "
        f"at a random moment and stays away (seed {_SEED}; the proxy tries twice)."
    )
    async with filled(directory / "s3", rng, blobs=3, size=scale.of(24 << 20, 20 << 20)) as server:
        buckets = {"media": bucket_over(server)}
        async with service(directory / "programs", buckets, more="[heal]\nattempts = 2") as running:
            url, _ = await _reference(running, directory, record)
            whole = (directory / "whole.zip").read_bytes()
            for version in ("--http1.1", "--http1.0"):
                exits: Counter[int] = Counter()
                prefixes = 0
                for first in range(0, each, _AT_ONCE):
                    paths = [directory / f"{index}.zip" for index in range(first, min(first + _AT_ONCE, each))]
                    fetching = asyncio.gather(*(_curl(url, path, version) for path in paths))
                    await until_longer(paths, rng.randrange(len(whole) // 3))
                    await server.kill()
                    exits.update(code for code, _ in await fetching)
                    for path in paths:
                        content = path.read_bytes()
                        prefixes += len(content) < len(whole) and whole.startswith(content)
                        path.unlink()
                    await server.start()
                codes = ", ".join(f"{code}: {count}" for code, count in sorted(exits.items()))
                name = version.removeprefix("--").upper().replace("HTTP", "HTTP/")
                record.saw(f"{name}: exit codes of curl", codes, holds=set(exits) <= _BROKEN_EXITS)
                record.saw(f"{name}: what came is a true beginning", f"{prefixes} of {each}", holds=prefixes == each)
            aborted = await metric(running.proxies[0], "storage_proxy_downloads_aborted_total")
            record.saw("aborts that the proxy counted", f"{aborted:,.0f}", holds=aborted == 2 * each)


async def _reference(running: Service, directory: Path, record: Record) -> tuple[str, bytes]:
    minted = await running.mint("archive", {"bucket": "media", "prefix": "set/"})
    path = directory / "whole.zip"
    code, printed = await run("curl", "-sSf", "-o", str(path), minted["url"])
    holds = code == 0 and size_of(path) == minted["size"]
    record.saw("undisturbed archive", f"{mib(minted['size'])}, curl exits {code} {printed}".strip(), holds=holds)
    return str(minted["url"]), digest_of(path)


async def _curl(url: str, path: Path, *more: str) -> tuple[int, str]:
    return await run("curl", "-sSf", *more, "--limit-rate", _RATE, "-o", str(path), url)
