"""A TCP proxy that puts distance between a server and its clients: what either sends arrives a while later.

The law: it delays, and limits nothing. Bytes leave in the order and as fast as they came, each read by itself after
its delay; requests that are sent together travel together. A new connection is accepted at once, which flatters
clients that make one for each request.
Options, in this order: port, port of the server, milliseconds between a request and the first byte of its answer.
"""

import asyncio
import sys
from collections import deque
from typing import cast

from benchmarks.processes import run

BYTES_UNDER_WAY = 64 << 20
"""Beyond so many on their way in one direction no more are read: 5 GB/s at 10 ms."""
PORT, ORIGIN, MILLISECONDS = range(1, 4)


class Direction(asyncio.Protocol):
    """What one end receives, sent to the other end ``delay`` seconds later."""

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.at_end = False
        self.other: Direction | None = None
        self.transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._under_way: deque[bytes] = deque()
        self._bytes_under_way = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are none by their type
        self.transport.set_write_buffer_limits(high=BYTES_UNDER_WAY)

    def data_received(self, data: bytes) -> None:
        self._under_way.append(data)
        self._bytes_under_way += len(data)
        if self._bytes_under_way > BYTES_UNDER_WAY and self.transport is not None:
            self.transport.pause_reading()
        self._loop.call_later(self.delay, self._arrive)

    def eof_received(self) -> bool:
        self.at_end = True
        self._loop.call_later(self.delay, self._end_writing)
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self._loop.call_later(self.delay, self.close_other)

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def _arrive(self) -> None:
        data = self._under_way.popleft()
        self._bytes_under_way -= len(data)
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)
        if self.transport is not None and self._bytes_under_way <= BYTES_UNDER_WAY // 2:
            self.transport.resume_reading()

    def _end_writing(self) -> None:
        if self.other is None or self.other.transport is None or self.other.transport.is_closing():
            return
        self.other.transport.write_eof()
        if self.other.at_end:
            self.close_other()
            self.other.close_other()

    def close_other(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


async def serve(port: int, origin: int, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    joining: set[asyncio.Task[None]] = set()

    async def join(near: "Client") -> None:
        assert near.transport is not None
        try:
            _, far = await loop.create_connection(lambda: Direction(seconds / 2), "127.0.0.1", origin)
        except OSError:
            near.transport.abort()
            return
        near.other, far.other = far, near
        near.transport.resume_reading()

    class Client(Direction):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            assert self.transport is not None
            self.transport.pause_reading()  # until the server is reached
            task = loop.create_task(join(self))
            joining.add(task)
            task.add_done_callback(joining.discard)

    server = await loop.create_server(lambda: Client(seconds / 2), "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    run(serve(int(sys.argv[PORT]), int(sys.argv[ORIGIN]), int(sys.argv[MILLISECONDS]) / 1000))
