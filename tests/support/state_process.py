"""A process that writes to a state file until it is killed: ``python -m tests.support.state_process PATH NAME``.

Each transaction adds one to a counter that all processes share, and writes its number under two keys; when it has
returned, the number is printed.
"""

import asyncio
import sys
from pathlib import Path

from storage_proxy.state.attempts import RetryPolicy
from storage_proxy.state.port import Transaction
from storage_proxy.state.sqlite import SqliteOptions, open_sqlite

COUNT = b"count"


def halves(name: str, number: int) -> tuple[bytes, bytes]:
    return f"left/{name}/{number:06}".encode(), f"right/{name}/{number:06}".encode()


async def write(path: Path, name: str) -> None:
    options = SqliteOptions(path, busy_seconds=30, probe_seconds=30, retries=RetryPolicy(1_000, 60))
    async with open_sqlite(options) as store:
        number = 0

        async def fn(transaction: Transaction) -> None:
            count = int(await transaction.get(COUNT) or 0)
            left, right = halves(name, number)
            transaction.set(left, b"%d" % count)
            transaction.set(right, b"%d" % count)
            transaction.set(COUNT, b"%d" % (count + 1))

        while True:
            await store.transact(fn)
            print(number, flush=True)
            number += 1


if __name__ == "__main__":
    asyncio.run(write(Path(sys.argv[1]), sys.argv[2]))
