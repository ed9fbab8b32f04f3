"""A range of an open file: read by the bucket's threads into buffers of the process's pool, one ahead of its reader.

The law: a buffer that a thread may still be filling is never given out, nor to anybody else.
"""

import asyncio
import os
from concurrent.futures import Future
from functools import partial
from typing import NamedTuple

from storage_proxy.common.errors import StorageUnavailable
from storage_proxy.stores.buffers import READ_AHEAD, Buffer, BufferPool, ReaderBuffers
from storage_proxy.stores.local_threads import Threads
from storage_proxy.stores.local_tree import fill_version


class Begun(NamedTuple):
    """A range whose first bytes are read; ``fd`` is None when they are all of it."""

    fd: int | None
    etag: str
    first: bytes


class _Filling(NamedTuple):
    """A buffer that a thread fills, and how many bytes of it in the end."""

    buffer: Buffer
    filled: Future[int]


class LocalReader:
    """Bytes ``start`` to ``stop``. The descriptor is closed when no thread is reading from it any more."""

    def __init__(
        self, threads: Threads, pool: BufferPool, begun: Begun, start: int, stop: int, *, timeout: float
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._threads = threads
        self._fd, self._etag, self._first = begun
        self._offset = start
        self._stop = stop
        self._timeout = timeout
        length = stop - start - len(begun.first)
        self._buffers = None if begun.fd is None else ReaderBuffers(pool, length, READ_AHEAD)
        self._out: Buffer | None = None
        self._filling: _Filling | None = None
        self._given_at = 0.0

    async def read(self) -> bytes | memoryview:
        if self._offset == self._stop:
            self._out = None
            self._free()
            return b""
        if self._first:
            chunk, self._first = self._first, b""
            self._offset += len(chunk)
            return chunk
        if self._fd is None or self._buffers is None:
            raise StorageUnavailable("The reader is closed")
        return await self._next(self._fd, self._buffers)

    async def _next(self, fd: int, buffers: ReaderBuffers) -> memoryview:
        if self._out is not None:
            spent, self._out = self._out, None
            buffers.paced(len(spent), len(spent), self._loop.time() - self._given_at)
            buffers.spend(spent, self._stop - self._offset)
        filling = self._filling or self._fill(fd, buffers, self._offset)
        assert filling is not None, "a reader has its least"
        count = await self._threads.outcome(filling.filled, self._timeout)
        self._filling = None
        self._out = filling.buffer
        self._offset += count
        self._fill(fd, buffers, self._offset)
        self._given_at = self._loop.time()
        return filling.buffer.view[:count]

    def _fill(self, fd: int, buffers: ReaderBuffers, offset: int) -> _Filling | None:
        """Let a thread fill the next buffer, if there is one and anything to fill it with."""
        left = self._stop - offset
        buffer = buffers.obtain(left) if left else None
        if buffer is None:
            return None
        work = partial(fill_version, fd, self._etag, offset, buffer.view[:left])
        self._filling = _Filling(buffer, self._threads.submit(work))
        return self._filling

    async def aclose(self) -> None:
        self._first = b""
        self._free()

    def _free(self) -> None:
        fd, self._fd = self._fd, None
        if fd is None or self._buffers is None:
            return
        filling = self._filling
        if filling is None or filling.filled.done():
            os.close(fd)
            self._buffers.close(self._out)
        else:  # the thread that still reads closes the file, and keeps its buffer
            filling.filled.add_done_callback(lambda _: os.close(fd))
            self._buffers.close(self._out, filling.buffer)
