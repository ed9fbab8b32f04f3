"""HeadObject, ListObjectsV2 and PutObject without the SDK: what is asked by the thousand, or is long.

The SDK's own costs are 1 ms of CPU for a call; a page of 1,000 keys, or the signature of a large body, holds the event
loop for a tenth of a second. The law: an answer that the SDK would understand better, a redirect or a 400, is left to
the SDK.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from hashlib import sha256
from typing import TypeVar

import aiohttp
from yarl import URL

from storage_proxy.common.errors import StorageError, StorageUnavailable
from storage_proxy.stores.s3_attempts import attempts
from storage_proxy.stores.s3_errors import asks_for_patience, error_code, is_elsewhere, refusal
from storage_proxy.stores.s3_listing_xml import BrokenListing, Listing, ListingParser, ListingQuestion
from storage_proxy.stores.s3_signer import Signer

_HEAD = {"x-amz-checksum-mode": "ENABLED"}

_MAX_LISTING_BYTES = 16 << 20
"""Four times what 1,000 keys of 1,024 bytes need, each byte of them encoded as three."""

_PIECE_BYTES = 16 << 10
_PIECE_OBJECTS = 50
_SENT_BYTES = 256 << 10
"""How much is read or sent before others have their turn: 2 ms at most, as a rule."""

_T = TypeVar("_T")


class S3Requests:
    """Asks through ``session``; the caller closes it, and has a deadline over all attempts.

    All calls give None when the SDK has to be asked instead, and raise the port's errors and those of aiohttp.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        signer: Signer,
        *,
        max_attempts: int,
        proxy: str | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._session = session
        self._signer = signer
        self._max_attempts = max_attempts
        self._proxy = proxy
        self._jitter = jitter

    async def head(self, name: str) -> Mapping[str, str] | None:
        """The headers of the answer, by names in any case; raises `BlobNotFound` where there is no such object."""

        async def ask() -> tuple[str, Mapping[str, str]]:
            return await self._signer.signed("HEAD", name, _HEAD)

        return await self._answer("HeadObject", "HEAD", ask, _headers)

    async def list_objects(self, question: ListingQuestion) -> Listing | None:
        """A page of the bucket's listing."""
        parameters = {
            "list-type": "2",
            "encoding-type": "url",
            "prefix": question.prefix,
            "max-keys": str(question.max_keys),
        }
        if question.start_after:
            parameters["start-after"] = question.start_after
        if question.continuation:
            parameters["continuation-token"] = question.continuation

        async def ask() -> tuple[str, Mapping[str, str]]:
            return await self._signer.signed_query(parameters)

        return await self._answer("ListObjectsV2", "GET", ask, _listing)

    async def put(self, name: str, body: bytes, headers: Mapping[str, str]) -> bool | None:
        """Write the object whole, by a request with ``headers``; True."""
        digest = await asyncio.to_thread(_sha256, body)
        sized = {**headers, "content-length": str(len(body))}

        async def ask() -> tuple[str, Mapping[str, str]]:
            return await self._signer.signed("PUT", name, sized, payload=digest)

        return await self._answer("PutObject", "PUT", ask, _is_done, body)

    async def _answer(
        self,
        operation: str,
        method: str,
        ask: Callable[[], Awaitable[tuple[str, Mapping[str, str]]]],
        read: Callable[[aiohttp.ClientResponse], Awaitable[_T]],
        body: bytes | None = None,
    ) -> _T | None:
        for is_last, pause in attempts(self._max_attempts, self._jitter):
            url, headers = await ask()
            try:
                async with self._session.request(
                    method,
                    URL(url, encoded=True),
                    headers=headers,
                    data=None if body is None else _pieces(body),
                    allow_redirects=False,
                    proxy=self._proxy,
                ) as response:
                    if response.status == 200:
                        return await read(response)
                    status = response.status
                    code = await error_code(partial(response.content.read, _PIECE_BYTES))
            except (aiohttp.ClientError, OSError):  # a deadline's TimeoutError is raised further out
                if is_last:
                    raise
            except BrokenListing as error:  # the SDK, too, takes this for a 500
                if is_last:
                    raise StorageUnavailable(f"The storage's answer to {operation} is not a whole listing") from error
            else:
                if is_elsewhere(status, code):
                    return None
                if is_last or not asks_for_patience(status, code):
                    raise refusal(operation, status, code)
            await asyncio.sleep(pause)
        raise AssertionError("there is at least one attempt")


async def _pieces(body: bytes) -> AsyncIterator[memoryview]:
    view = memoryview(body)
    for start in range(0, len(view), _SENT_BYTES):
        yield view[start : start + _SENT_BYTES]
        await asyncio.sleep(0)


def _sha256(body: bytes) -> str:
    return sha256(body).hexdigest()


async def _is_done(_: aiohttp.ClientResponse) -> bool:
    return True


async def _headers(response: aiohttp.ClientResponse) -> Mapping[str, str]:
    for value in response.headers.values():
        value.encode()  # bytes that are no text: `ValueError`
    return response.headers


async def _listing(response: aiohttp.ClientResponse) -> Listing:
    parser, size = ListingParser(), 0
    async for piece in response.content.iter_chunked(_PIECE_BYTES):
        size += len(piece)
        if size > _MAX_LISTING_BYTES:
            raise StorageError("The storage's listing is too long")
        parser.feed(piece)
        await asyncio.sleep(0)
    parser.close()
    objects = []
    for found in parser.objects():
        objects.append(found)
        if len(objects) % _PIECE_OBJECTS == 0:
            await asyncio.sleep(0)
    return Listing(objects, parser.is_truncated, parser.following)
