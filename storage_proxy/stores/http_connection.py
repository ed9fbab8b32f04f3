"""One connection to a server, and the answer that comes over it: received into large buffers, given out as views.

The law: a view stays as it is until the next read, and an answer that has not been taken to its end, or that was
followed by anything, ends its connection.
"""

import asyncio
from contextlib import suppress
from typing import cast

from storage_proxy.common.errors import StorageError, StorageTimeout, StorageUnavailable
from storage_proxy.stores.buffers import Buffer, ReaderBuffers
from storage_proxy.stores.http_responses import BadAnswer, Chunked, Head, HeadParser, Sized

_EMPTY = memoryview(b"")


class Connection(asyncio.BufferedProtocol):
    """Carries one exchange at a time. Bytes that come outside of one end it."""

    def __init__(self) -> None:
        self.used = False
        """Whether it has carried an exchange."""
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._paused = False
        self._nowhere = bytearray(1)

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def begin(self, exchange: "Exchange", request: bytes) -> None:
        """Send a request whose answer ``exchange`` takes; on a connection that is lost already, that ends at once."""
        self._exchange = exchange
        if self._transport is None or self._transport.is_closing():
            exchange.ended()
        else:
            self._transport.write(request)

    def end(self) -> None:
        """Expect nothing more of the exchange."""
        self._exchange = None
        self.used = True
        self.resume()

    def pause(self) -> None:
        if not self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview | bytearray:
        room = self._exchange.room() if self._exchange is not None else None
        return self._nowhere if room is None else room

    def buffer_updated(self, nbytes: int) -> None:
        if self._exchange is None:
            self.abort()
        else:
            self._exchange.received(nbytes)

    def eof_received(self) -> None:
        if self._exchange is not None:
            self._exchange.ended()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._exchange is not None:
            self._exchange.ended()


class Exchange:
    """A request over ``connection``, and its answer in ``buffers``. Each wait is bounded by ``timeout`` seconds.

    Raises `StorageUnavailable` when the connection ends, `StorageTimeout` when nothing comes, and `StorageError` for
    what is no answer. Whoever makes one calls `close` on every path.
    """

    def __init__(
        self,
        connection: Connection,
        buffers: ReaderBuffers,
        *,
        timeout: float,
        bodiless: bool = False,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._buffers = buffers
        self._timeout = timeout
        self._parser = HeadParser(bodiless=bodiless)
        self._head: Head | None = None
        self._body: Sized | Chunked | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._failure: StorageError | None = None
        self._ended = False
        # What is being filled: its bytes from _begin to _end are there.
        self._fill: Buffer | None = None
        self._begin = self._end = 0
        # What is being read, and how far.
        self._out: Buffer | None = None
        self._out_begin = self._out_end = 0
        self._given_at: float | None = None
        self._followed = False
        self.heard = False
        """Whether a byte of the answer has come."""
        self.closed = False

    def begin(self, request: bytes) -> None:
        self._connection.begin(self, request)

    async def head(self) -> Head:
        while self._head is None:
            await self._more("The connection ended before an answer")
        return self._head

    async def read(self) -> memoryview:
        """The body's next bytes, valid until the next call; empty at its end. `head` has been asked for before."""
        assert self._body is not None, "the head comes first"
        if self._given_at is not None and self._out is not None:
            self._buffers.paced(self._out_end, len(self._out), self._loop.time() - self._given_at)
            self._given_at = None
        while not (piece := self._piece(self._body)):
            if self._body.done:
                return _EMPTY
            await self._more("The storage ended the body early")
        self._given_at = self._loop.time()
        return piece

    @property
    def reusable(self) -> bool:
        """Whether the answer is over, and the connection good for another."""
        if self._head is None or self._body is None or self._failure is not None or self._ended:
            return False
        rest = self._out_end - self._out_begin + self._end - self._begin
        return self._body.done and self._head.reusable and not rest and not self._followed

    def drain(self) -> None:
        """Read over what has come already, if that may be the body's end: for the connection's sake."""
        if self._body is None or self._failure is not None:
            return
        with suppress(BadAnswer):
            if self._out is not None:
                self._out_begin = _skipped(self._body, self._out, self._out_begin, self._out_end)
            if self._fill is not None:
                self._begin = _skipped(self._body, self._fill, self._begin, self._end)

    def close(self) -> bool:
        """Give the buffers back; whether the connection is good for another exchange. It is ended otherwise."""
        if self.closed:
            return False
        self.closed = True
        reusable = self.reusable and self._connection.usable
        if not reusable:
            self._connection.abort()
        self._connection.end()
        self._buffers.close(self._out)
        self._out = self._fill = None
        self._begin = self._end = 0
        self._wake()
        return reusable

    def _piece(self, body: Sized | Chunked) -> memoryview:
        """The next bytes of the body that are here; empty when there are none."""
        while self._out is not None or self._end > self._begin:
            if self._out is None:
                self._turn(body)
            out = self._out
            assert out is not None
            try:
                start, stop = body.next(out.bytes, self._out_begin, self._out_end)
            except BadAnswer as error:
                raise self._refused(error) from error
            self._out_begin = stop
            if stop > start:
                return out.view[start:stop]
            if stop < self._out_end:  # the body is over, and something follows it
                self._followed = True
            self._out, self._out_begin, self._out_end = None, 0, 0
            self._buffers.spend(out, body.expected)
            if body.done:
                break
        return _EMPTY

    def _turn(self, body: Sized | Chunked) -> None:
        """Read what has been filled, and fill another buffer meanwhile, if there may be one."""
        self._out, self._out_begin, self._out_end = self._fill, self._begin, self._end
        self._fill, self._begin, self._end = None, 0, 0
        expected = body.expected
        left = None if expected is None else expected - (self._out_end - self._out_begin)
        if left is not None and left <= 0:
            self._connection.resume()  # what comes now does not belong here
            return
        self._fill = self._buffers.obtain(left)
        if self._fill is None:
            self._connection.pause()
        else:
            self._connection.resume()

    async def _more(self, ended: str) -> None:
        """Wait until something has come; ``ended`` is what it means when the connection ends instead."""
        if self._failure is not None:
            raise self._failure
        if self._ended:
            raise StorageUnavailable(ended)
        if self.closed:
            raise StorageUnavailable("The reader is closed")
        if self._fill is None:
            self._fill = self._buffers.obtain(None if self._body is None else self._body.expected)
        self._connection.resume()
        self._waiter = self._loop.create_future()
        try:
            async with asyncio.timeout(self._timeout):
                await self._waiter
        except TimeoutError as error:
            raise StorageTimeout("The storage stopped sending") from error
        finally:
            self._waiter = None

    def _refused(self, error: BadAnswer) -> StorageError:
        self._failure = StorageError(f"The storage's answer makes no sense: {error}")
        self._connection.abort()
        return self._failure

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # What the connection calls.

    def room(self) -> memoryview | None:
        """Where the next bytes go; None when none are expected."""
        if self._fill is None and self._body is None:
            self._fill = self._buffers.obtain(None)
        return None if self._fill is None else self._fill.view[self._end :]

    def received(self, count: int) -> None:
        fill = self._fill
        self.heard = True
        if fill is None:
            self._followed = True
            self._connection.abort()
            return
        self._end += count
        if self._head is None:
            self._parse(fill)
        if self._end == len(fill):
            self._connection.pause()
        self._wake()

    def _parse(self, fill: Buffer) -> None:
        try:
            found = self._parser.feed(fill.bytes, self._begin, self._end)
        except BadAnswer as error:
            self._refused(error)
            return
        if found is None:
            self._end = 0
            return
        self._head, self._begin = found
        self._body = self._head.body
        if self._begin == self._end:
            self._begin = self._end = 0

    def ended(self) -> None:
        self._ended = True
        self._wake()


def _skipped(body: Sized | Chunked, buffer: Buffer, begin: int, end: int) -> int:
    """Where the body's bytes end that lie from ``begin`` on; the buffer's bytes stay as they are."""
    while begin < end:
        start, begin = body.next(buffer.bytes, begin, end)
        if begin == start:
            break
    return begin
