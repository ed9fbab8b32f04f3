"""A real S3 server for tests: found by environment, else started, else the test is skipped or fails."""

import os
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aioboto3

from storage_proxy.stores.s3 import S3BlobStore, S3Options, open_s3_store
from tests.support.real_services import PrivateService, shared
from tools import services

if TYPE_CHECKING:
    from types_aiobotocore_s3.client import S3Client
    from types_aiobotocore_s3.type_defs import ObjectIdentifierTypeDef


@dataclass(frozen=True, slots=True)
class S3Server:
    """Where a server listens and the keys of its root account."""

    endpoint: str
    access_key: str
    secret_key: str

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.endpoint)
        return parts.hostname or "127.0.0.1", parts.port or 80

    def options(self, bucket: str) -> S3Options:
        """Options for a bucket of this server, impatient enough for tests of faults."""
        return S3Options(
            bucket=bucket,
            endpoint=self.endpoint,
            access_key=self.access_key,
            secret_key=self.secret_key,
            addressing="path",
            connect_timeout=2.0,
            read_timeout=10.0,
            request_timeout=20.0,
        )

    @asynccontextmanager
    async def client(self) -> "AsyncIterator[S3Client]":
        """A plain client, for what the store has no call for."""
        opening = shared_session().client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
        )
        async with opening as client:
            yield client


@dataclass(frozen=True, slots=True)
class S3Bucket:
    """A bucket that nobody else uses."""

    server: S3Server
    name: str
    client: "S3Client"

    def options(self, *, endpoint: str | None = None) -> S3Options:
        options = self.server.options(self.name)
        return options if endpoint is None else replace(options, endpoint=endpoint)


@cache
def shared_session() -> aioboto3.Session:
    """One for all tests: each new one reads the model of S3 again, 200 ms."""
    return aioboto3.Session()


def open_store(options: S3Options) -> AbstractAsyncContextManager[S3BlobStore]:
    return open_s3_store(options, session=shared_session())


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """The server of the environment, or the one of .services, which is stopped if it is started here."""
    if endpoint := os.environ.get("TEST_S3_ENDPOINT"):
        access_key = os.environ.get("TEST_S3_ACCESS_KEY", services.S3_ACCESS_KEY)
        secret_key = os.environ.get("TEST_S3_SECRET_KEY", services.S3_SECRET_KEY)
        yield S3Server(endpoint, access_key, secret_key)
        return
    with shared(services.S3()) as port:
        yield S3Server(f"http://127.0.0.1:{port}", services.S3_ACCESS_KEY, services.S3_SECRET_KEY)


@asynccontextmanager
async def fresh_bucket(server: S3Server) -> AsyncIterator[S3Bucket]:
    """A new bucket, emptied and deleted at the end."""
    name = f"test-{uuid.uuid4().hex}"
    async with server.client() as client:
        await client.create_bucket(Bucket=name)
        try:
            yield S3Bucket(server, name, client)
        finally:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=name)
            async for page in pages:
                objects: list[ObjectIdentifierTypeDef] = [{"Key": item["Key"]} for item in page.get("Contents", [])]
                if objects:
                    await client.delete_objects(Bucket=name, Delete={"Objects": objects, "Quiet": True})
            await client.delete_bucket(Bucket=name)


class PrivateS3(PrivateService):
    """A server of the test's own."""

    def __init__(self, directory: Path, *, keeps_versions: bool = False) -> None:
        super().__init__(services.S3(keeps_versions=keeps_versions), directory)
        self.server = S3Server(f"http://127.0.0.1:{self._port}", services.S3_ACCESS_KEY, services.S3_SECRET_KEY)
