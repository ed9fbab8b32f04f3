"""GetObject without the SDK: what every download is made of.

The law: an answer that the SDK would understand better, such as a redirect, is left to the SDK.
"""

import asyncio
import random
import re
from collections.abc import Callable, Mapping

from storage_proxy.common.errors import StorageError, StorageTimeout, StorageUnavailable
from storage_proxy.stores.buffers import BufferPool, ReaderBuffers
from storage_proxy.stores.http_connection import Connection, Exchange
from storage_proxy.stores.http_pool import ConnectionPool
from storage_proxy.stores.http_responses import Head
from storage_proxy.stores.s3_answers import check_range
from storage_proxy.stores.s3_attempts import attempts
from storage_proxy.stores.s3_errors import asks_for_patience, error_code, is_elsewhere, refusal
from storage_proxy.stores.s3_signer import Signer

_UNSENDABLE = re.compile(r"[^\t\x20-\x7e]")


class _Refused(Exception):
    """An answer with an error status."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(status, code)
        self.status = status
        self.code = code


class GetRequests:
    """Asks through ``pool``; the caller closes it, and has a deadline over all attempts.

    An answer or a body may stall for ``stall_timeout`` seconds.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        signer: Signer,
        buffers: BufferPool,
        *,
        max_attempts: int,
        stall_timeout: float,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._pool = pool
        self._signer = signer
        self._buffers = buffers
        self._max_attempts = max_attempts
        self._stall_timeout = stall_timeout
        self._jitter = jitter

    async def open(self, name: str, start: int, stop: int, if_match: str | None) -> "ObjectReader | None":
        """Bytes ``start`` to ``stop`` of the version ``if_match``; None when the SDK has to be asked instead.

        Raises the port's errors.
        """
        question = {"range": f"bytes={start}-{stop - 1}"}
        if if_match is not None:
            question["if-match"] = if_match
        for is_last, pause in attempts(self._max_attempts, self._jitter):
            try:
                connection, exchange, head = await self._ask(name, question, stop - start)
            except _Refused as refused:
                if is_elsewhere(refused.status, refused.code):
                    return None
                if is_last or not asks_for_patience(refused.status, refused.code):
                    raise refusal("GetObject", refused.status, refused.code) from None
            except (StorageUnavailable, StorageTimeout):
                if is_last:
                    raise
            else:
                reader = ObjectReader(self._pool, connection, exchange, length=stop - start)
                try:
                    check_range(head.status, head.headers, start, stop, if_match)
                except BaseException:
                    await reader.aclose()
                    raise
                return reader
            await asyncio.sleep(pause)
        raise AssertionError("there is at least one attempt")

    async def _ask(self, name: str, question: Mapping[str, str], length: int) -> tuple[Connection, Exchange, Head]:
        """An answer with the object's bytes; the caller gives the connection back."""
        url, headers = await self._signer.signed("GET", name, question)
        request = _request(url.removeprefix(self._signer.origin), headers)
        connection = await self._pool.acquire()
        while True:
            buffers, kept = ReaderBuffers(self._buffers, length), connection.used
            exchange = Exchange(connection, buffers, timeout=self._stall_timeout)
            try:
                exchange.begin(request)
                head = await exchange.head()
                if head.status in {200, 206}:
                    return connection, exchange, head
                raise _Refused(head.status, await error_code(exchange.read))
            except BaseException as error:
                self._pool.give_back(connection, reusable=exchange.close())
                stale = kept and not exchange.heard and isinstance(error, StorageUnavailable)
                if not stale:
                    raise
            # The server closed what was idle just when it was used: that is no attempt.
            connection = await self._pool.acquire(fresh=True)


class ObjectReader:
    """The `BlobReader` over an answer: exactly ``length`` bytes, or an error."""

    def __init__(self, pool: ConnectionPool, connection: Connection, exchange: Exchange, *, length: int) -> None:
        self._pool = pool
        self._connection = connection
        self._exchange = exchange
        self._left = length

    async def read(self) -> bytes | memoryview:
        if self._exchange.closed:  # and its connection may be somebody else's by now
            if self._left:
                raise StorageUnavailable("The reader is closed")
            return b""
        chunk = await self._exchange.read()
        if len(chunk) > self._left:
            raise StorageError("The storage sent more bytes than were asked for")
        self._left -= len(chunk)
        if not chunk:
            if self._left:
                raise StorageUnavailable("The storage ended the body early")
            self._release()
        return chunk

    async def aclose(self) -> None:
        if not self._exchange.closed:
            self._exchange.drain()
            self._release()

    def _release(self) -> None:
        self._pool.give_back(self._connection, reusable=self._exchange.close())


def _request(target: str, headers: Mapping[str, str]) -> bytes:
    """The head of a request without a body (RFC 9112 section 3); raises `ValueError` for what it cannot carry."""
    lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    if any(map(_UNSENDABLE.search, lines)):
        raise ValueError("a header cannot be sent")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")
