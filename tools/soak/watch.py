"""What a running program holds: memory while something happens, connections, its own metrics."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.request import urlopen

from tests.support.programs import Program

_EVERY_SECONDS = 0.05


class MemoryWatch:
    """The largest growth of a program's own memory (RssAnon), in bytes, since the watch began."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self.before = program.memory()
        self.growth = 0

    def look(self) -> None:
        self.growth = max(self.growth, self._program.memory() - self.before)


@contextlib.asynccontextmanager
async def memory_of(program: Program) -> AsyncIterator[MemoryWatch]:
    """Watch ``program``, which lives as long, until the end of the block."""
    watch = MemoryWatch(program)

    async def look_again_and_again() -> None:
        while True:
            watch.look()
            await asyncio.sleep(_EVERY_SECONDS)

    looking = asyncio.create_task(look_again_and_again())
    try:
        yield watch
        watch.look()
    finally:
        looking.cancel()


def connections_to(program: Program, port: int) -> int:
    """The established TCP connections of the program to ``port``, by /proc."""
    assert program.process is not None
    here = Path(f"/proc/{program.process.pid}")
    own = {_link(entry) for entry in (here / "fd").iterdir()}
    lines = (here / "net/tcp").read_text().splitlines()[1:]
    established = [line.split() for line in lines if line.split()[3] == "01"]
    return sum(
        int(fields[2].rpartition(":")[2], 16) == port and f"socket:[{fields[9]}]" in own for fields in established
    )


def open_files(program: Program) -> int:
    """The file descriptors of the program."""
    assert program.process is not None
    return len(list(Path(f"/proc/{program.process.pid}/fd").iterdir()))


def _link(entry: Path) -> str:
    try:
        return str(entry.readlink())
    except FileNotFoundError:  # closed in between
        return ""


async def metric(program: Program, name: str, *labels: str) -> float:
    """The sum of a metric's samples that have all of ``labels`` (as they are written)."""

    def read() -> str:
        with urlopen(f"{program.health_url}/metrics", timeout=30) as answer:
            return str(answer.read().decode())

    lines = (await asyncio.to_thread(read)).splitlines()
    found = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
    return sum(float(line.rsplit(" ", 1)[1]) for line in found if all(label in line for label in labels))
