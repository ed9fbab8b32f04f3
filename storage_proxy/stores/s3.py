"""A bucket, or a prefix of one, behind the S3 API.

The law: every call has a deadline that includes its retries, and an answer counts only when its ETag, range and
length are those of the question.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

import aioboto3
from isal import isal_zlib

from storage_proxy.common.errors import BlobNotFound, StorageError, StorageUnavailable, UnsafeName
from storage_proxy.stores.buffers import BufferPool
from storage_proxy.stores.port import BlobReader, BlobStat, PresignedPut, UploadTerms
from storage_proxy.stores.s3_answers import (
    check_range,
    may_be_alias,
    object_name,
    stat_of_head,
    stat_of_listed,
)
from storage_proxy.stores.s3_checksums import ObjectChecksums
from storage_proxy.stores.s3_connections import S3Options, open_connections
from storage_proxy.stores.s3_deletion import S3Deletion
from storage_proxy.stores.s3_errors import BadRequest, translated
from storage_proxy.stores.s3_gets import GetRequests
from storage_proxy.stores.s3_listings import S3Listings
from storage_proxy.stores.s3_reader import S3Reader
from storage_proxy.stores.s3_requests import S3Requests
from storage_proxy.stores.s3_signer import Signer
from storage_proxy.stores.s3_uploads import S3Uploads, crc32_header
from storage_proxy.stores.uploads import IncomingBody

if TYPE_CHECKING:
    from types_aiobotocore_s3.client import S3Client
    from types_aiobotocore_s3.type_defs import GetObjectRequestTypeDef

__all__ = ["S3BlobStore", "S3Options", "open_s3_store"]


@asynccontextmanager
async def open_s3_store(
    options: S3Options, *, session: aioboto3.Session | None = None, buffers: BufferPool | None = None
) -> AsyncIterator["S3BlobStore"]:
    """The store and its clients, closed on leaving. Nothing is asked of the server yet. ``buffers`` are for readers.

    A first client costs 200 ms, mostly for reading the library's model of S3; with a shared ``session`` the next one
    costs 10. The session's own keys do not matter where ``options`` have some.
    """
    async with open_connections(options, session or aioboto3.Session(), buffers or BufferPool()) as connections:
        store = S3BlobStore(
            connections.client,
            bucket=options.bucket,
            prefix=options.prefix,
            presign_client=connections.public_client,
            requests=connections.requests,
            gets=connections.gets,
            public_signer=connections.public_signer,
            request_timeout=options.request_timeout,
            stall_timeout=options.read_timeout,
        )
        try:
            yield store
        finally:
            await store.aclose()


class S3BlobStore:
    """The `BlobStore` over a bucket, with every ability but `ReadsCrc32`; clients and connections stay the caller's.

    A key is the object ``prefix + key``. Some servers map object names to paths and answer for ``/a`` or ``x/../a``
    with the object ``a``: a name with empty or dotted parts is believed only when the listing has it.
    """

    def __init__(
        self,
        client: "S3Client",
        *,
        bucket: str,
        prefix: str = "",
        presign_client: "S3Client | None" = None,
        requests: S3Requests | None = None,
        gets: GetRequests | None = None,
        public_signer: Signer | None = None,
        request_timeout: float = 30.0,
        stall_timeout: float = 20.0,
        probe_timeout: float = 3.0,
    ) -> None:
        self._client = client
        self._presign_client = presign_client or client
        self._requests = requests
        self._gets = gets
        self._public_signer = public_signer
        self._bucket = bucket
        self._prefix = prefix
        self._request_timeout = request_timeout
        self._stall_timeout = stall_timeout
        self._probe_timeout = min(probe_timeout, request_timeout)
        self._checksums = ObjectChecksums(client, bucket)
        self._uploads = S3Uploads(client, bucket, self._deadline, self._guarded_head)
        self._listings = S3Listings(client, bucket, requests, self._deadline)
        self._deletion = S3Deletion(client, bucket, self._deadline, self._listings)
        self._bucket_seen = False
        self._closed = False

    async def stat(self, key: str) -> BlobStat | None:
        name = object_name(self._prefix, key)
        if name is None:
            return None
        async with self._deadline("HeadObject"):
            if may_be_alias(name) and not await self._listings.has(name):
                return None
            head = await self._head_if_any(name)
            return None if head is None else stat_of_head(key, head, await self._checksums.crc32(name, head))

    async def _head_if_any(self, name: str) -> Mapping[str, str] | None:
        """The headers of the answer to HeadObject, by names in lower case; None where there is no such object."""
        try:
            headers = await self._head(name)
        except BlobNotFound:
            if not self._bucket_seen:  # an answer to HEAD has no body to tell a missing bucket by
                await self._listings.first(name, 1)
                self._bucket_seen = True
            return None
        except BadRequest:
            if await self._listings.has(name):
                raise
            return None
        self._bucket_seen = True
        return headers

    async def _head(self, name: str) -> Mapping[str, str]:
        with translated("HeadObject"):
            if self._requests is not None and (headers := await self._requests.head(name)) is not None:
                return headers
            answer = await self._client.head_object(Bucket=self._bucket, Key=name, ChecksumMode="ENABLED")
            return answer["ResponseMetadata"]["HTTPHeaders"]

    async def open(self, key: str, *, start: int, stop: int, if_match: str | None) -> BlobReader:
        name = object_name(self._prefix, key)
        if name is None:
            raise BlobNotFound
        async with self._deadline("GetObject"):
            if may_be_alias(name) and not await self._listings.has(name):
                raise BlobNotFound
            try:
                reader = await self._reader(name, start, stop, if_match)
            except BadRequest as error:
                if await self._listings.has(name):
                    raise
                raise BlobNotFound from error
        self._bucket_seen = True
        return reader

    async def _reader(self, name: str, start: int, stop: int, if_match: str | None) -> BlobReader:
        with translated("GetObject"):
            if self._gets is not None and (own := await self._gets.open(name, start, stop, if_match)) is not None:
                return own
            question: GetObjectRequestTypeDef = {
                "Bucket": self._bucket,
                "Key": name,
                "Range": f"bytes={start}-{stop - 1}",
            }
            if if_match is not None:
                question["IfMatch"] = if_match
            answer = await self._client.get_object(**question)
        body: Any = answer["Body"]  # a wrapper that copies and joins; beneath it is aiohttp's response
        reader = S3Reader(body.__wrapped__, length=stop - start, stall_timeout=self._stall_timeout)
        said = answer["ResponseMetadata"]
        try:
            check_range(said["HTTPStatusCode"], said["HTTPHeaders"], start, stop, if_match)
        except BaseException:
            await reader.aclose()
            raise
        return reader

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Sequence[BlobStat]]:
        beginning = self._prefix + prefix
        if prefix and object_name(self._prefix, prefix) is None:
            return
        try:
            after = (self._prefix + start_after).encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            return
        async with aclosing(self._listings.objects(beginning, after)) as pages:
            async for page in pages:
                yield [stat_of_listed(item.name.removeprefix(self._prefix), item) for item in page]

    async def put(self, key: str, body: bytes) -> None:
        name = object_name(self._prefix, key)
        if name is None or may_be_alias(name):
            raise StorageError("The bucket cannot hold this key")
        # Given with the request, so that the server refuses a body that was damaged on its way.
        checksum = crc32_header(isal_zlib.crc32(body))
        async with self._deadline("PutObject"):
            headers = {"x-amz-checksum-crc32": checksum}
            if self._requests is None or not await self._requests.put(name, body, headers):
                await self._client.put_object(
                    Bucket=self._bucket, Key=name, Body=body, ChecksumAlgorithm="CRC32", ChecksumCRC32=checksum
                )

    async def presign_get(self, key: str, *, expires_in: int, content_disposition: str, content_type: str) -> str:
        name = object_name(self._prefix, key)
        if name is None:
            raise BlobNotFound
        async with self._deadline("GetObject"):
            if may_be_alias(name) and not await self._listings.has(name):
                raise BlobNotFound
            return await self._presign_client.generate_presigned_url(
                "get_object",
                Params={
                    "Bucket": self._bucket,
                    "Key": name,
                    "ResponseContentDisposition": content_disposition,
                    "ResponseContentType": content_type,
                },
                ExpiresIn=expires_in,
            )

    async def presign_put(self, key: str, terms: UploadTerms, *, expires_in: int) -> PresignedPut:
        name = self._new_name(key)
        headers = {"if-none-match": "*"}
        if terms.content_type is not None:
            headers["content-type"] = terms.content_type
        if terms.size is not None:
            headers["content-length"] = str(terms.size)
        if terms.crc32 is not None:
            headers["x-amz-checksum-crc32"] = crc32_header(terms.crc32)
        async with self._deadline("PutObject"):
            if self._public_signer is None:
                raise StorageError("The storage has no presigned uploads")
            url = await self._public_signer.presigned("PUT", name, headers, expires_in=expires_in)
        return PresignedPut(url, headers)

    async def receive(
        self, key: str, body: AsyncIterable[bytes | memoryview], terms: UploadTerms, *, max_bytes: int
    ) -> BlobStat:
        name = self._new_name(key)
        incoming = IncomingBody(body, terms, max_bytes=max_bytes)
        headers = await self._uploads.create(name, incoming, terms.content_type)
        with translated("HeadObject"):
            return stat_of_head(key, headers, incoming.crc32)

    async def delete_many(self, keys: Sequence[str]) -> None:
        names = [object_name(self._prefix, key) for key in keys]
        await self._deletion.delete_named([name for name in names if name is not None])

    async def erase(self, prefix: str) -> AsyncIterator[int]:
        name = object_name(self._prefix, prefix)
        if name is not None and prefix.endswith("/"):
            async with aclosing(self._deletion.erase(name)) as steps:
                async for removed in steps:
                    yield removed

    async def discard_uploads(self, prefix: str, *, older_than: float) -> int:
        return await self._deletion.discard_uploads(self._prefix + prefix, older_than)

    async def probe(self) -> None:
        # The deadline is what bounds the retries here: the client's setting is for all of its calls.
        async with self._deadline("ListObjectsV2", self._probe_timeout):
            await self._listings.first(self._prefix, 1)

    async def aclose(self) -> None:
        self._closed = True

    @asynccontextmanager
    async def _deadline(self, operation: str, seconds: float | None = None) -> AsyncIterator[None]:
        """The one door to the client: no call outlasts it, and nothing but the port's errors comes out."""
        if self._closed:
            raise StorageUnavailable("The bucket is closed")
        with translated(operation):
            async with asyncio.timeout(self._request_timeout if seconds is None else seconds):
                yield

    def _new_name(self, key: str) -> str:
        """The object's name of a blob that is to be created; a folder is none."""
        name = object_name(self._prefix, key)
        if name is None or may_be_alias(name) or name.endswith("/"):
            raise UnsafeName
        return name

    async def _guarded_head(self, name: str) -> Mapping[str, str] | None:
        async with self._deadline("HeadObject"):
            return await self._head_if_any(name)
