"""Downloads cancelled at random moments: tasks, connections, buffers and the budget come back to what they were."""

from pathlib import Path

from tests.support.cancellations import crowd
from tests.support.s3 import PrivateS3, fresh_bucket
from tools.soak.record import Record, Scale

_SEED = 8


async def cancellations(scale: Scale, record: Record, directory: Path) -> None:
    """10,000 clients that leave in the middle of a blob or an archive, some of them after they stopped reading."""
    count = scale.of(10_000, 30)
    record.did(
        f"{count:,} clients, 24 at once, of a proxy in the soak's own process; each leaves a blob or an archive of "
        f"large, small or mixed blobs after a random number of bytes (seed {_SEED}), half of them by a reset."
    )
    server = PrivateS3(directory / "s3")
    await server.start()
    try:
        async with fresh_bucket(server.server) as bucket, crowd(bucket) as clients:
            seen = await clients.leave(count, seed=_SEED)
    finally:
        await server.kill()
    record.saw("left in the middle, had all of it", f"{seen.within:,}, {seen.whole:,}", holds=seen.within > count / 4)
    left = ", ".join(f"{name}: {figure:,.0f}" for name, figure in seen.left.items())
    record.saw("downloads, tasks, reads of S3, held bytes that they left", left or "none", holds=not left)
