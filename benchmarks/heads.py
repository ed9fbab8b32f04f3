"""What HeadObject and presigned PUTs cost, by the store and by the SDK: `python -m benchmarks.heads`."""

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable

import aioboto3

from benchmarks.storage import BUCKET, Storage, running_storage
from storage_proxy.stores.port import UploadTerms
from storage_proxy.stores.s3 import S3Options, open_s3_store

KEY = "heads/blob"


async def measured(name: str, call: Callable[[], Awaitable[object]], *, calls: int, at_once: int) -> None:
    """Prints how many calls a second, and this process's CPU time for each."""
    left = iter(range(calls))

    async def work() -> None:
        for _ in left:
            await call()

    await call()
    begun, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(work() for _ in range(at_once)))
    seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu
    print(f"{name:<36} {calls / seconds:8,.0f}/s  {cpu_seconds / calls * 1e3:6.3f} ms CPU each", flush=True)


async def compare(storage: Storage, calls: int, at_once: int) -> None:
    options = S3Options(
        bucket=BUCKET,
        endpoint=storage.endpoint,
        region=storage.region,
        access_key=storage.access_key,
        secret_key=storage.secret_key,
        addressing="path",
    )
    terms = UploadTerms("application/octet-stream", 1_000_000, 0x12345678)
    async with storage.client() as client, open_s3_store(options, session=aioboto3.Session()) as store:
        if BUCKET not in {bucket["Name"] for bucket in (await client.list_buckets())["Buckets"]}:
            await client.create_bucket(Bucket=BUCKET)
        await store.put(KEY, b"x" * 1000)
        for together in (1, at_once):
            await measured(
                f"HeadObject, SDK, {together} at once",
                lambda: client.head_object(Bucket=BUCKET, Key=KEY, ChecksumMode="ENABLED"),
                calls=calls,
                at_once=together,
            )
            await measured(f"stat, {together} at once", lambda: store.stat(KEY), calls=calls, at_once=together)
        await measured(
            "presigned PUT, SDK",
            lambda: client.generate_presigned_url(
                "put_object",
                Params={
                    "Bucket": BUCKET,
                    "Key": KEY,
                    "ContentType": "application/octet-stream",
                    "ContentLength": 1_000_000,
                    "ChecksumCRC32": "EjRWeA==",
                    "IfNoneMatch": "*",
                },
            ),
            calls=calls,
            at_once=1,
        )
        await measured("presign_put", lambda: store.presign_put(KEY, terms, expires_in=900), calls=calls, at_once=1)


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.heads", description=__doc__)
    parser.add_argument("--calls", type=int, default=5000, help="of each kind (default: 5000)")
    parser.add_argument("--at-once", type=int, default=32, help="(default: 32)")
    given = parser.parse_args()
    async with running_storage() as storage:
        await compare(storage, given.calls, given.at_once)


if __name__ == "__main__":
    asyncio.run(main())
