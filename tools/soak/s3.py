"""A real S3 server of a case's own, with blobs in it."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.s3 import PrivateS3

BUCKET = "media"


@asynccontextmanager
async def filled(directory: Path, rng: random.Random, *, blobs: int, size: int) -> AsyncIterator[PrivateS3]:
    """A server with ``blobs`` random blobs of ``size`` bytes under ``set/``, which know their CRC-32s."""
    server = PrivateS3(directory)
    await server.start()
    try:
        async with server.server.client() as client:
            await client.create_bucket(Bucket=BUCKET)
            for index in range(blobs):
                body = rng.randbytes(size)
                await client.put_object(Bucket=BUCKET, Key=f"set/{index}.bin", Body=body, ChecksumAlgorithm="CRC32")
        yield server
    finally:
        await server.kill()


def bucket_over(server: PrivateS3) -> dict[str, object]:
    """The proxy's configuration of the bucket."""
    return {
        "kind": "s3",
        "endpoint": server.server.endpoint,
        "bucket": BUCKET,
        "access_key": server.server.access_key,
        "secret_key": server.server.secret_key,
        "addressing": "path",
        "connect_timeout_seconds": 2.0,
        "read_timeout_seconds": 10.0,
        "request_timeout_seconds": 10.0,
    }
