"""Many slow clients of one URL: each reads at its pace, and says at the end how much it had in which time.

Options, in this order: URL, clients, bytes a second of each, seconds. Prints a line when all are connected, and at the
end the bytes a second of each client as a JSON list.
"""

import asyncio
import json
import socket
import sys
import time

from benchmarks.processes import run
from tools.slow_line import answered, asked

PACES = 10
"""So many reads a second of each client, at most."""
URL, CLIENTS, RATE, SECONDS = range(1, 5)
READY = "all are connected"


async def connected(url: str) -> socket.socket:
    """A connection whose request is answered with 200; the head has been read, and a little more."""
    client = await asked(url)
    await answered(client)
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
    clients = [await connected(sys.argv[URL]) for _ in range(int(sys.argv[CLIENTS]))]
    print(READY, flush=True)
    until = time.monotonic() + float(sys.argv[SECONDS])
    rates = await asyncio.gather(*(read(client, float(sys.argv[RATE]), until) for client in clients))
    print(json.dumps(rates), flush=True)


if __name__ == "__main__":
    run(main())
