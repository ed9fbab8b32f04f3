"""Files that downloads are written to, looked at while they grow."""

import asyncio
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

_LOOK_EVERY_SECONDS = 0.01


def size_of(path: Path) -> int:
    """Bytes; 0 when there is no such file yet."""
    return path.stat().st_size if path.exists() else 0


def cut_at(path: Path, size: int) -> None:
    """Keep the first ``size`` bytes."""
    os.truncate(path, size)


def digest_of(path: Path) -> bytes:
    """SHA-256."""
    return hashlib.sha256(path.read_bytes()).digest()


async def until_longer(paths: Sequence[Path], size: int, *, within: float = 120.0) -> None:
    """Wait until each of ``paths`` has more than ``size`` bytes. Raises TimeoutError."""
    async with asyncio.timeout(within):
        while any(size_of(path) <= size for path in paths):  # noqa: ASYNC110 a file does not tell that it grew
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
