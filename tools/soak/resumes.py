"""A download that was cut anywhere goes on anywhere: another replica, restarted or not, gives the missing bytes."""

import hashlib
import random
from pathlib import Path

from tests.support.programs import run, service
from tools.soak.record import Record, Scale, mib

_SEED = 3


async def resumes_after_cuts(scale: Scale, record: Record, directory: Path) -> None:
    """`curl -C -` after 200 random cuts, alternating between two proxies."""
    rng = random.Random(_SEED)
    root, cuts = directory / "blobs", scale.of(200, 6)
    (root / "größe & 名前/empty").mkdir(parents=True)
    (root / "large.bin").write_bytes(rng.randbytes(scale.of(16 << 20, 1 << 20)))
    for index in range(scale.of(400, 20)):
        (root / f"größe & 名前/{index}.bin").write_bytes(rng.randbytes(int(rng.expovariate(1 / 20_000))))
    record.did(
        f"An archive of {scale.of(401, 21)} files and an empty folder, cut at {cuts} random bytes (seed {_SEED}); each "
        "time resumed by curl -C - from the other of two proxies; both restarted half-way."
    )
    buckets = {"default": {"kind": "local", "root": str(root)}}
    whole, part = directory / "whole.zip", directory / "part.zip"
    async with service(directory / "programs", buckets, proxies=2) as running:
        minted = await running.mint("archive", {"prefix": ""})
        code, printed = await run("curl", "-sSf", "-o", str(whole), minted["url"])
        content = whole.read_bytes()
        record.saw("whole archive", f"{mib(len(content))}, curl exits {code} {printed}".strip(), holds=code == 0)
        digest = hashlib.sha256(content).digest()
        points = [0, 1, len(content) - 1, *(rng.randrange(len(content)) for _ in range(cuts - 3))]
        failures = []
        for index, cut in enumerate(points):
            if index == cuts // 2:
                for proxy in running.proxies:
                    await proxy.stop()
                    await proxy.start()
            part.write_bytes(content[:cut])
            code, _ = await run("curl", "-sSf", "-C", "-", "-o", str(part), running.at(minted["url"], index % 2))
            if code or hashlib.sha256(part.read_bytes()).digest() != digest:
                failures.append(f"byte {cut:,} (curl exits {code})")
        seen = f"{cuts - len(failures)} of {cuts}" + "".join(f"; not {each}" for each in failures[:5])
        record.saw("resumed with an equal sha256", seen, holds=not failures)
