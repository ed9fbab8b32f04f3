"""Many slow clients of one URL: each reads at its pace, and says at the end how much it had in which time.

The law: what lies in the kernel's buffers is not delivered. Each client has a receive buffer of 16 KiB and segments of
1,448 bytes, as over Ethernet, and so the kernel holds about 250 kB of each download; by the segments of loopback, of
64 KiB, it would take more than 4 MB of each off the server's hands.
Options, in this order: URL, clients, bytes a second of each, seconds. Prints a line when all are connected, and at the
end the bytes a second of each client as a JSON list.
"""

import asyncio
import json
import socket
import sys
import time
from urllib.parse import SplitResult, urlsplit

from benchmarks.processes import run

RECEIVE_BUFFER = 16 << 10
SEGMENT = 1448
PACES = 10
"""So many reads a second of each client, at most."""
URL, CLIENTS, RATE, SECONDS = range(1, 5)
READY = "all are connected"


async def connected(url: SplitResult) -> socket.socket:
    """A connection whose request is answered with 200; the head has been read, and a little more."""
    loop = asyncio.get_running_loop()
    client = socket.socket()
    client.setblocking(False)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
    await loop.sock_connect(client, (url.hostname, url.port))
    request = f"GET {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\nConnection: close\r\n\r\n"
    await loop.sock_sendall(client, request.encode())
    head = b""
    while b"\r\n\r\n" not in head:
        data = await loop.sock_recv(client, 256)
        if not data:
            raise SystemExit(f"a client was closed after {head!r}")
        head += data
    if not head.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"a client was answered with {head[:100]!r}")
    return client


async def read(client: socket.socket, rate: float, until: float) -> float:
    """Bytes a second that came from now until the moment, asking for ``rate`` at most."""
    loop = asyncio.get_running_loop()
    began = time.monotonic()
    got = 0
    try:
        async with asyncio.timeout(until - began):
            while True:
                allowed = int((time.monotonic() - began) * rate) - got
                if allowed <= 0:
                    await asyncio.sleep(1 / PACES)
                    continue
                data = await loop.sock_recv(client, allowed)
                if not data:
                    raise SystemExit("a client was at the end before its time")
                got += len(data)
                await asyncio.sleep(1 / PACES)
    except TimeoutError:
        pass
    client.close()
    return got / (time.monotonic() - began)


async def main() -> None:
    url = urlsplit(sys.argv[URL])
    clients = [await connected(url) for _ in range(int(sys.argv[CLIENTS]))]
    print(READY, flush=True)
    until = time.monotonic() + float(sys.argv[SECONDS])
    rates = await asyncio.gather(*(read(client, float(sys.argv[RATE]), until) for client in clients))
    print(json.dumps(rates), flush=True)


if __name__ == "__main__":
    run(main())
