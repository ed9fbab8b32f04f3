"""The real S3 server under all peers, and the blobs in it, which are kept from run to run."""

import asyncio
import os
import random
import shutil
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING

import aioboto3
from aiobotocore.config import AioConfig

from benchmarks.cases import MIB, Case
from benchmarks.processes import BenchmarkError, free_port, running

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client
    from types_aiobotocore_s3.literals import ChecksumAlgorithmType

ROOT = Path(__file__).resolve().parent.parent
WORKSPACE = ROOT / ".services" / "benchmarks"
BLOBS = WORKSPACE / "blobs"
"""The S3 server's directory: a directory for each bucket."""
BUCKET = "benchmarks"
UPLOADS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Storage:
    """A running S3 server and how to reach it."""

    endpoint: str
    access_key: str
    secret_key: str
    region: str
    pid: int

    @asynccontextmanager
    async def client(self) -> AsyncIterator["S3Client"]:
        async with aioboto3.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=AioConfig(signature_version="s3v4", s3={"addressing_style": "path"}),
        ) as client:
            yield client


@asynccontextmanager
async def running_storage(*, access_log: Path | None = None) -> AsyncIterator[Storage]:
    """versitygw as `make services` installs it, on a directory of its own; a line a request in ``access_log``."""
    BLOBS.mkdir(parents=True, exist_ok=True)
    port = free_port()
    access_key, secret_key, region = "benchmarks", "benchmarks-secret", "us-east-1"
    command = [_server(), "--port", f"127.0.0.1:{port}", "--access", access_key, "--secret", secret_key]
    command += ["--region", region, "--keep-alive", "--quiet"]
    if access_log is not None:
        access_log.unlink(missing_ok=True)
        command += ["--access-log", str(access_log)]
    command += ["posix", str(BLOBS)]
    endpoint = f"http://127.0.0.1:{port}"
    log = WORKSPACE / "s3.log"
    async with running(command, ready_url=endpoint, log=log, cwd=ROOT, environment=os.environ) as pid:
        yield Storage(endpoint, access_key, secret_key, region, pid)


def _server() -> str:
    installed = ROOT / ".services" / "bin" / "versitygw"
    found = str(installed) if installed.exists() else shutil.which("versitygw")
    if found is None:
        raise BenchmarkError("there is no S3 server: run `make services` first")
    return found


async def fill(storage: Storage, cases: Iterable[Case]) -> None:
    """Upload what is missing, each blob with its CRC-32, as boto3 does it by default, or with its SHA-256 alone."""
    async with storage.client() as client:
        await _create_bucket(client)
        for case in cases:
            await asyncio.to_thread(shutil.rmtree, _copies(case), ignore_errors=True)
            for needed in (case, case.part):
                if needed is not None:
                    await _fill_case(client, needed)


def fresh_copy(case: Case, number: int) -> Case:
    """``case`` over the same blobs by other keys, which nobody has seen before: hard links in the server's directory.

    It blocks. `fill` removes the copies of the last time.
    """
    copy = replace(case, folder=f"{case.name}-copies/{number:03}")
    directory = BLOBS / BUCKET / copy.prefix
    directory.mkdir(parents=True)
    for there, here in zip(case.keys, copy.keys, strict=True):
        os.link(BLOBS / BUCKET / there, BLOBS / BUCKET / here)
    return copy


def _copies(case: Case) -> Path:
    return BLOBS / BUCKET / case.scale / f"{case.name}-copies"


async def put_missing(storage: Storage, prefix: str, keys: Sequence[str], body: bytes) -> None:
    """Upload ``body`` as each of ``keys``, which begin with ``prefix``, where it is not there yet."""
    async with storage.client() as client:
        await _create_bucket(client)
        present: set[str] = set()
        async for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix):
            present.update(blob["Key"] for blob in page.get("Contents", []))
        missing = iter([key for key in keys if key not in present])

        async def upload() -> None:
            for key in missing:
                await client.put_object(Bucket=BUCKET, Key=key, Body=body, ChecksumAlgorithm="CRC32")

        await asyncio.gather(*(upload() for _ in range(UPLOADS_AT_ONCE)))


async def ensure_bucket(storage: Storage) -> None:
    async with storage.client() as client:
        await _create_bucket(client)


def remove_state(path: Path) -> None:
    """Remove a SQLite file and what stands beside it."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


async def _create_bucket(client: "S3Client") -> None:
    existing = await client.list_buckets()
    if BUCKET not in {bucket["Name"] for bucket in existing["Buckets"]}:
        await client.create_bucket(Bucket=BUCKET)


async def _fill_case(client: "S3Client", case: Case) -> None:
    present: dict[str, int] = {}
    async for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=case.prefix):
        present.update({blob["Key"]: blob["Size"] for blob in page.get("Contents", [])})
    missing = [key for key in case.keys if present.get(key) != case.blob_bytes]
    if surplus := present.keys() - set(case.keys):
        raise BenchmarkError(f"{len(surplus)} blobs too many under {case.prefix}: remove {WORKSPACE} and run again")
    slots = asyncio.Semaphore(UPLOADS_AT_ONCE)

    async def upload(key: str) -> None:
        async with slots:
            with _content(key, case.blob_bytes) as body:
                await client.put_object(Bucket=BUCKET, Key=key, Body=body, ChecksumAlgorithm=algorithm)

    algorithm: ChecksumAlgorithmType = "CRC32" if case.has_crcs else "SHA256"
    async with asyncio.TaskGroup() as group:
        for key in missing:
            group.create_task(upload(key))


def _content(key: str, size: int) -> IO[bytes]:
    """The same incompressible bytes on every machine; more than a block stand in a file, not in memory."""
    block = random.Random(key).randbytes(min(size, 16 * MIB))
    if len(block) == size:
        return BytesIO(block)
    path = WORKSPACE / "upload"
    file = path.open("w+b")
    path.unlink()
    for start in range(0, size, len(block)):
        file.write(block[: size - start])
    file.seek(0)
    return file
