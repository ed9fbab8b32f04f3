"""What HeadObject and presigned PUTs cost in a process of their own, by the store and by the SDK."""

import asyncio
import os
from collections.abc import Awaitable, Callable

import aioboto3

from benchmarks.efforts import Effort, Efforts, watched
from benchmarks.storage import BUCKET, Storage, ensure_bucket
from storage_proxy.stores.port import UploadTerms
from storage_proxy.stores.s3 import S3BlobStore, open_s3_store
from storage_proxy.stores.s3_connections import S3Options

KEY = "calls/blob"
AT_ONCE = 32
TERMS = UploadTerms("application/octet-stream", 1_000_000, 0x12345678)
HEAD, PRESIGN = f"HeadObject, {AT_ONCE} at once", "presigned PUT, alone"
OURS, SDK = "our store", "aioboto3"


async def compare(storage: Storage, rounds: int, *, count: int) -> Efforts:
    """``count`` calls of each kind in each round. Nothing is announced here."""
    efforts = Efforts(rounds)
    await ensure_bucket(storage)
    options = S3Options(
        bucket=BUCKET,
        endpoint=storage.endpoint,
        region=storage.region,
        access_key=storage.access_key,
        secret_key=storage.secret_key,
        addressing="path",
    )
    async with storage.client() as client, open_s3_store(options, session=aioboto3.Session()) as store:
        await store.put(KEY, b"x" * 1000)
        presign = {
            "Bucket": BUCKET,
            "Key": KEY,
            "ContentType": TERMS.content_type,
            "ContentLength": TERMS.size,
            "ChecksumCRC32": "EjRWeA==",
            "IfNoneMatch": "*",
        }
        calls: dict[tuple[str, str], Callable[[], Awaitable[object]]] = {
            (HEAD, OURS): lambda: store.stat(KEY),
            (HEAD, SDK): lambda: client.head_object(Bucket=BUCKET, Key=KEY, ChecksumMode="ENABLED"),
            (PRESIGN, OURS): lambda: _presigned(store),
            (PRESIGN, SDK): lambda: client.generate_presigned_url("put_object", Params=presign, ExpiresIn=900),
        }
        for number in range(rounds):
            for (case, who), call in calls.items() if number % 2 == 0 else reversed(calls.items()):
                await call()
                efforts.add(case, who, await _called(call, count, 1 if case == PRESIGN else AT_ONCE))
    return efforts


async def _presigned(store: S3BlobStore) -> None:
    await store.presign_put(KEY, TERMS, expires_in=900)


async def _called(call: Callable[[], Awaitable[object]], count: int, at_once: int) -> Effort:
    left = iter(range(count))

    async def work() -> None:
        for _ in left:
            await call()

    with watched(count, os.getpid()) as watch:
        await asyncio.gather(*(work() for _ in range(at_once)))
    return watch.efforts[0]
