"""The client of every measured download: one connection, one request after the other, large reads into one buffer.

The law: it must not be the bottleneck. A read takes up to 1 MiB and keeps nothing, which costs half of what curl does.
"""

import http.client
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from benchmarks.processes import BenchmarkError

READ_BYTES = 1 << 20
_STALL_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Target:
    """What is downloaded: the URLs, all of one server, one after the other; exactly how many bytes must come together
    (None: unknown), and how many the blobs have.
    """

    urls: Sequence[str]
    size: int | None
    payload: int


@dataclass(frozen=True, slots=True)
class Download:
    """How many bytes came, in how many seconds; and after how many the first of its body."""

    size: int
    seconds: float
    first_byte_seconds: float


def download(*urls: str, bytes_range: str = "") -> Download:
    """Read all of each URL, or of its ``bytes_range`` (as in a Range header), over one connection. It blocks.

    Raises `BenchmarkError` for any answer but 200 (206 to a range), and for one that breaks off.
    """
    connection = http.client.HTTPConnection(urlsplit(urls[0]).netloc, timeout=_STALL_SECONDS)
    buffer = memoryview(bytearray(READ_BYTES))
    headers = {"Range": f"bytes={bytes_range}"} if bytes_range else {}
    size, first_byte = 0, 0.0
    began = time.perf_counter()
    try:
        for url in urls:
            parts = urlsplit(url)
            connection.request("GET", f"{parts.path}?{parts.query}", headers=headers)
            answer = connection.getresponse()
            if answer.status != (206 if bytes_range else 200):
                raise BenchmarkError(f"a download was answered with {answer.status}: {answer.read(500).decode()}")
            size += len(answer.read(1))
            first_byte = first_byte or time.perf_counter() - began
            while got := answer.readinto(buffer):
                size += got
            if answer.length:
                raise BenchmarkError(f"a download ended {answer.length} bytes early, after {size}")
        return Download(size, time.perf_counter() - began, first_byte)
    except (OSError, http.client.HTTPException) as error:
        raise BenchmarkError(f"a download broke off after {size} bytes: {error!r}") from error
    finally:
        connection.close()


def content(url: str, bytes_range: str) -> bytes:
    """The bytes of a range. It blocks; raises as `download`."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=_STALL_SECONDS)
    try:
        connection.request("GET", f"{parts.path}?{parts.query}", headers={"Range": f"bytes={bytes_range}"})
        answer = connection.getresponse()
        if answer.status != 206:
            raise BenchmarkError(f"a range was answered with {answer.status}")
        return answer.read()
    finally:
        connection.close()
