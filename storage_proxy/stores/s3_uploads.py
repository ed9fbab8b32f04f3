"""A body on its way into S3: one PutObject, or the parts of a multipart upload, with a CRC-32 of the whole.

The law: the object is created by the last request or not at all (``If-None-Match: *``), and whether it was is decided
by a mark that only this upload has, not by an answer that may have been lost.
"""

import asyncio
import base64
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError
from isal import isal_zlib

from storage_proxy.common.errors import (
    BlobExists,
    ServiceError,
    StorageError,
    StorageTimeout,
    StorageUnavailable,
    UnsafeName,
)
from storage_proxy.stores.s3_errors import answer_of
from storage_proxy.stores.uploads import IncomingBody, finish, settled

if TYPE_CHECKING:
    from types_aiobotocore_s3.client import S3Client
    from types_aiobotocore_s3.type_defs import CompletedPartTypeDef

PART_BYTES = 8 << 20
"""What is gathered before a request, and held three times at the most: one part gathered, `PARTS_AT_ONCE` sent."""
PARTS_AT_ONCE = 2
MAX_PARTS = 10_000

_MARK = "storage-proxy-upload"
_CANNOT_HOLD = frozenset({"KeyTooLongError", "ObjectParentIsFile", "ExistingObjectIsDirectory"})
"""Codes of servers that map names to paths."""

Deadline = Callable[[str], AbstractAsyncContextManager[None]]
Head = Callable[[str], Awaitable[Mapping[str, str] | None]]


def crc32_header(crc32: int) -> str:
    """A CRC-32 as S3 writes it: base64 of four bytes, the highest first."""
    return base64.b64encode(crc32.to_bytes(4, "big")).decode()


def part_bytes(most_bytes: int) -> int:
    """How large the parts of an upload of at most ``most_bytes`` are, so that `MAX_PARTS` suffice."""
    return max(PART_BYTES, -(-most_bytes // MAX_PARTS))


class _Unsettled(Exception):
    """The last request was refused for what is there, which may be the effect of an attempt before it."""


class S3Uploads:
    """Creates objects. ``deadline`` guards each request; ``head`` gives an object's headers, None without object."""

    def __init__(self, client: "S3Client", bucket: str, deadline: Deadline, head: Head) -> None:
        self._client = client
        self._bucket = bucket
        self._deadline = deadline
        self._head = head

    async def create(self, name: str, incoming: IncomingBody, content_type: str | None) -> Mapping[str, str]:
        """Create the object and return its headers; raises as `ReceivesUploads.receive` does."""
        size = part_bytes(incoming.most_bytes)
        upload = _Upload(self._client, self._bucket, name, incoming, content_type, self._deadline, self._head)
        async with aclosing(incoming.pieces(size)) as pieces:
            first = await anext(pieces, bytearray())
            if len(first) < size:
                return await upload.put(first)
            parts = _chained(first, pieces)
            del first
            return await upload.put_parts(parts)


async def _chained(first: bytearray, rest: AsyncIterator[bytearray]) -> AsyncIterator[bytearray]:
    yield first
    del first
    async for piece in rest:
        yield piece


class _Upload:
    """One object on its way."""

    def __init__(
        self,
        client: "S3Client",
        bucket: str,
        name: str,
        incoming: IncomingBody,
        content_type: str | None,
        deadline: Deadline,
        head: Head,
    ) -> None:
        self._client = client
        self._name = name
        self._incoming = incoming
        self._deadline = deadline
        self._head = head
        self._mark = secrets.token_hex(16)
        self._where: Any = {"Bucket": bucket, "Key": name}
        self._described: Any = {"Metadata": {_MARK: self._mark}}
        if content_type is not None:
            self._described["ContentType"] = content_type

    async def put(self, body: bytearray) -> Mapping[str, str]:
        return await settled(self._committed("PutObject", partial(self._put, BytesIO(body))), self._withdraw)

    async def put_parts(self, parts: AsyncIterator[bytearray]) -> Mapping[str, str]:
        if await self._head(self._name) is not None:  # S3 itself would say so only after the last part
            raise BlobExists
        upload_id = await settled(self._begin(), self._abort)
        try:
            done = await self._send_all(upload_id, parts)
            complete = partial(self._complete, upload_id, done)
            return await settled(self._committed("CompleteMultipartUpload", complete), self._withdraw)
        except BaseException:
            await finish(self._abort(upload_id))
            raise

    async def _put(self, body: BytesIO) -> None:
        await self._client.put_object(
            **self._where, **self._described, **self._condition(), Body=body, ChecksumAlgorithm="CRC32"
        )

    async def _begin(self) -> str:
        async with self._deadline("CreateMultipartUpload"):
            with _refusals():
                begun = await self._client.create_multipart_upload(
                    **self._where, **self._described, ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT"
                )
        return begun["UploadId"]

    async def _send_all(self, upload_id: str, parts: AsyncIterator[bytearray]) -> "list[CompletedPartTypeDef]":
        """Send the parts, some at once, while the next one is gathered; when this raises, none is being sent."""
        sending: deque[asyncio.Task[CompletedPartTypeDef]] = deque()
        done: list[CompletedPartTypeDef] = []
        try:
            async for part in parts:
                if len(sending) == PARTS_AT_ONCE:
                    done.append(await asyncio.shield(sending[0]))
                    sending.popleft()
                number = len(done) + len(sending) + 1
                crc32 = crc32_header(isal_zlib.crc32(part))
                sending.append(asyncio.create_task(self._send(upload_id, number, BytesIO(part), crc32)))
                del part  # it was copied
            while sending:
                done.append(await asyncio.shield(sending[0]))
                sending.popleft()
        except BaseException:
            # They are let come to their end: of a part that arrives after its upload was aborted a server may make a
            # new beginning (S3 API reference, AbortMultipartUpload).
            await finish(_ended(sending))
            raise
        return done

    async def _send(self, upload_id: str, number: int, body: BytesIO, crc32: str) -> "CompletedPartTypeDef":
        async with self._deadline("UploadPart"):
            answer = await self._client.upload_part(
                **self._where,
                UploadId=upload_id,
                PartNumber=number,
                Body=body,
                ChecksumAlgorithm="CRC32",
                ChecksumCRC32=crc32,
            )
        return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC32": crc32}

    async def _complete(self, upload_id: str, parts: "list[CompletedPartTypeDef]") -> None:
        await self._client.complete_multipart_upload(
            **self._where,
            **self._condition(),
            UploadId=upload_id,
            MultipartUpload={"Parts": parts},
            ChecksumType="FULL_OBJECT",
            MpuObjectSize=self._incoming.size,
        )

    def _condition(self) -> Any:
        """What the object has to be for the server to create it."""
        return {"IfNoneMatch": "*", "ChecksumCRC32": crc32_header(self._incoming.crc32)}

    async def _committed(self, operation: str, request: Callable[[], Awaitable[None]]) -> Mapping[str, str]:
        """Make the object appear by ``request`` and return its headers, also when only the answer was lost."""
        trouble: ServiceError | None = None
        refused = False
        try:
            async with self._deadline(operation):
                with _refusals():
                    await request()
        except _Unsettled:
            refused = True
        except (StorageUnavailable, StorageTimeout) as error:
            trouble = error
        try:
            headers = await self._head(self._name)
        except ServiceError as error:
            raise trouble or error from error
        if headers is not None and headers.get(f"x-amz-meta-{_MARK}") == self._mark:
            await self._check(headers)
            return headers
        if trouble is not None:
            raise trouble
        if refused and headers is None:
            raise StorageUnavailable(f"The storage refused {operation} for a blob that is gone again")
        raise BlobExists if refused else StorageError("The storage does not have what it took")

    async def _check(self, headers: Mapping[str, str]) -> None:
        crc32 = headers.get("x-amz-checksum-crc32")
        right = crc32 in {None, crc32_header(self._incoming.crc32)}
        if not right or int(headers["content-length"]) != self._incoming.size:
            await self._withdraw(headers)
            raise StorageError("The storage holds something else than was uploaded")

    async def _withdraw(self, headers: Mapping[str, str]) -> None:
        """Remove the object, which is this upload's."""
        version = headers.get("x-amz-version-id")
        which: Any = {} if version is None else {"VersionId": version}
        async with self._deadline("DeleteObject"):
            await self._client.delete_object(**self._where, **which)

    async def _abort(self, upload_id: str) -> None:
        async with self._deadline("AbortMultipartUpload"):
            await self._client.abort_multipart_upload(**self._where, UploadId=upload_id)


async def _ended(tasks: Iterable[asyncio.Task[Any]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def _refusals() -> Iterator[None]:
    """Tell apart the refusals that are about the name and what is there under it."""
    try:
        yield
    except ClientError as error:
        status, code = answer_of(error)
        if code in _CANNOT_HOLD:
            raise UnsafeName from error
        # 409 on AWS: another upload of the name is being completed.
        if status in {409, 412} or code == "NoSuchUpload":
            raise _Unsettled from error
        raise
