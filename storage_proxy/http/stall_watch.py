"""Cuts a client that takes nothing.

The law: progress is what the client's machine has acknowledged; however slow, it is no stall, and waiting for our own
upstream is none either.
"""

import asyncio
import fcntl
import socket
import struct
import termios
from types import TracebackType
from typing import Self

_LOOKS = 8
"""How often it looks within the time that makes a stall."""


class StallWatch:
    """While entered, aborts ``transport`` when bytes have waited for ``seconds`` and none was acknowledged."""

    def __init__(self, transport: asyncio.WriteTransport, seconds: float) -> None:
        self._transport = transport
        self._interval = seconds / _LOOKS
        self._idle_looks = 0
        self._acknowledged = -1
        self._timer: asyncio.TimerHandle | None = None
        self.written = 0
        """Bytes given to the transport so far; the user of the watch counts them."""
        self.stalled = False

    def __enter__(self) -> Self:
        self._arm()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._look)

    def _look(self) -> None:
        waiting = self._transport.get_write_buffer_size()
        if self._transport.is_closing() and not waiting:  # closing, it waits for what is left, and for ever
            return
        acknowledged = self.written - waiting - _unacknowledged(self._transport)
        if not waiting or acknowledged != self._acknowledged:
            self._acknowledged = acknowledged
            self._idle_looks = 0
        else:
            self._idle_looks += 1
            if self._idle_looks >= _LOOKS:
                self.stalled = True
                self._transport.abort()
                return
        self._arm()


def _unacknowledged(transport: asyncio.WriteTransport) -> int:
    """Bytes in the kernel's send queue (Linux: SIOCOUTQ), 0 where that cannot be told."""
    sock: socket.socket | None = transport.get_extra_info("socket")
    if sock is None:
        return 0
    try:
        answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    except OSError:
        return 0
    return int(struct.unpack("i", answer)[0])
