"""Connections to one server, kept for the next request.

The law: never more than the limit are open, and one that is handed out comes back exactly once, whatever happens.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from aiohappyeyeballs import AddrInfoType, start_connection

from storage_proxy.common.errors import StorageUnavailable
from storage_proxy.stores.http_connection import Connection

_NEXT_ADDRESS_SECONDS = 0.25
_IDLE_SECONDS = 4.0
"""Servers close what is idle, many after 5 seconds and few before: ours go first."""


class ConnectionPool:
    """Up to ``limit`` connections to ``origin``, ``trust`` being how TLS is verified there."""

    def __init__(
        self,
        origin: str,
        *,
        trust: ssl.SSLContext | None,
        limit: int,
        connect_timeout: float,
        idle: float = _IDLE_SECONDS,
    ) -> None:
        parts = urlsplit(origin)
        self._trust = trust
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if trust else 80)
        self._connect_timeout = connect_timeout
        self._idle_seconds = idle
        # Idle connections have no slot: a new one is made only when none is idle, so all together keep the limit.
        self._slots = asyncio.Semaphore(limit)
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def busy_connections(self) -> int:
        """How many are handed out."""
        return len(self._busy)

    async def acquire(self, *, fresh: bool = False) -> Connection:
        """A connection, which the caller gives back; ``fresh``: none that was idle, as those may all be stale.

        Waits while there are too many. Raises `StorageUnavailable` when there is no connecting.
        """
        await self._slots.acquire()
        try:
            if self._closed:
                raise StorageUnavailable("The bucket is closed")
            if fresh:
                self._close_idle()
            connection = self._kept() or await self._connected()
        except BaseException:
            self._slots.release()
            raise
        self._busy.add(connection)
        return connection

    def give_back(self, connection: Connection, *, reusable: bool) -> None:
        """Keep what is ``reusable``, end it otherwise. Idempotent."""
        if connection not in self._busy:
            return
        self._busy.remove(connection)
        if reusable and not self._closed:
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.append(connection)
            self._watch()
        else:
            connection.abort()
        self._slots.release()

    def close(self) -> None:
        """Close every connection, also those that are in use. Idempotent."""
        self._closed = True
        self._close_idle()
        for connection in self._busy:
            connection.abort()
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    def _kept(self) -> Connection | None:
        """The connection that was used last, if it is still good."""
        oldest = asyncio.get_running_loop().time() - self._idle_seconds
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.idle_since >= oldest:
                return connection
            connection.abort()
        return None

    async def _connected(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout):
                # RFC 8305: an address that does not answer is passed over; uvloop's own connecting waits for it.
                found = await addresses_of(self._host, self._port)
                connected = await start_connection(found, happy_eyeballs_delay=_NEXT_ADDRESS_SECONDS, interleave=1)
                try:
                    _, connection = await loop.create_connection(
                        Connection,
                        sock=connected,
                        ssl=self._trust,
                        server_hostname=self._host if self._trust else None,
                    )
                except BaseException:
                    connected.close()
                    raise
        except (OSError, TimeoutError) as error:  # a wrong certificate, too
            raise StorageUnavailable("The storage cannot be reached") from error
        return connection

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop().abort()

    def _watch(self) -> None:
        """See to it that what stays idle is closed."""
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(self._idle_seconds, self._swept)

    def _swept(self) -> None:
        self._sweep = None
        oldest = asyncio.get_running_loop().time() - self._idle_seconds
        kept = [connection for connection in self._idle if connection.usable and connection.idle_since > oldest]
        for connection in set(self._idle).difference(kept):
            connection.abort()
        self._idle = kept
        if kept:
            self._watch()


async def addresses_of(host: str, port: int) -> Sequence[AddrInfoType]:
    """Where to find ``host``, by the system's resolver. Raises OSError."""
    return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)


@asynccontextmanager
async def open_pool(
    origin: str, *, trust: ssl.SSLContext | None, limit: int, connect_timeout: float
) -> AsyncIterator[ConnectionPool]:
    """A pool whose connections are closed on leaving."""
    pool = ConnectionPool(origin, trust=trust, limit=limit, connect_timeout=connect_timeout)
    try:
        yield pool
    finally:
        pool.close()
