"""A download over a slow line, as seen by the server: the kernel keeps little of what its client has not read.

The law: what lies in the kernel's buffers is not delivered. The receive buffer is 16 KiB and segments are Ethernet's,
of 1,448 bytes, so the kernel holds about 250 kB of a download; with loopback's own segments, of 64 KiB, it would take
more than 4 MB of it off the server's hands.
"""

import asyncio
import socket
from urllib.parse import urlsplit

_RECEIVE_BUFFER = 16 << 10
_SEGMENT = 1448
_HEAD_READ = 256


class NoDownload(RuntimeError):
    """The answer is not a download: another status than 200, or the connection's end."""


async def asked(url: str) -> socket.socket:
    """A connection, non-blocking, that has sent a GET of ``url`` and read nothing."""
    parts = urlsplit(url)
    connection = socket.socket()
    connection.setblocking(False)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SEGMENT)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connection, (parts.hostname, parts.port))
    request = f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n"
    await loop.sock_sendall(connection, request.encode())
    return connection


async def answered(connection: socket.socket) -> bytes:
    """Wait for the answer's head; what came of its body with it. Raises `NoDownload`."""
    loop = asyncio.get_running_loop()
    received = b""
    while b"\r\n\r\n" not in received:
        data = await loop.sock_recv(connection, _HEAD_READ)
        if not data:
            raise NoDownload(f"a client was closed after {received!r}")
        received += data
    head, _, body = received.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise NoDownload(f"a client was answered with {head[:100]!r}")
    return body
