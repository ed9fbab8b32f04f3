"""The BlobStore port: what a bucket promises to the rest of the house.

The law: bytes come from exactly the version that was asked for, or not at all. A backend checks every answer
against the request (ETag, range, length) and translates its client library's exceptions into `common.errors`.
"""

from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class BlobStat:
    """One version of one blob.

    ``key`` is relative to the bucket's prefix. ``size`` is in bytes. ``etag`` is strong and includes its quotes.
    ``last_modified`` is in whole seconds since the epoch, UTC. ``crc32`` is the CRC-32 (zip's, zlib's) of the
    whole content, or None where the store does not know it; a listing never knows it. ``content_type`` is what the
    store keeps, or its guess by the key where ``type_is_guessed``.
    """

    key: str
    size: int
    etag: str
    last_modified: int
    content_type: str | None = None
    content_encoding: str | None = None
    crc32: int | None = None
    type_is_guessed: bool = False


_LAST_MOMENT = 253_402_300_799  # 9999-12-31, the last day that HTTP and RFC 3339 can write


def whole_seconds(moment: float) -> int:
    """A ``last_modified`` from whatever a store says: what lies beyond the years 1970 to 9999 is drawn to them."""
    return int(min(max(moment, 0), _LAST_MOMENT))


class BlobReader(Protocol):
    """The bytes of an open range, in order.

    Whoever opened it calls ``aclose`` exactly once or more, on every path; it returns at once, frees the
    connection or file, and never raises. Cancelling ``read`` leaves the reader closable.
    """

    async def read(self) -> bytes | memoryview:
        """The next bytes, never empty before the end; empty when the whole range has been given.

        The result is valid until the next call. Ending early is never reported as an end: a body shorter than
        the range raises `StorageUnavailable` (it may be reopened at its offset), a body that stalls longer than
        the backend's stall timeout raises `StorageTimeout`.
        """
        ...

    async def aclose(self) -> None: ...


class BlobStore(Protocol):
    """One bucket. Safe for concurrent use by any number of tasks of one event loop.

    Every method raises `StorageUnavailable` (unreachable, 5xx, SlowDown: after the backend's own bounded
    retries), `StorageTimeout` or `StorageError` (refused, misconfigured, or an answer that contradicts the
    question). No method hangs: each has a deadline. Keys are given as the caller wrote them; a key that a
    backend cannot hold is absent, not an error. Text is UTF-8, undecodable file names are surrogate-escaped.
    """

    async def stat(self, key: str) -> BlobStat | None:
        """The blob as it is now, or None where there is none.

        A key that ends in ``/`` is a folder marker: an object of size 0, or an empty local directory.
        """
        ...

    async def open(self, key: str, *, start: int, stop: int, if_match: str | None) -> BlobReader:
        """Open bytes ``start`` (included) to ``stop`` (excluded) of the version whose ETag is ``if_match``.

        ``0 <= start < stop <= size``. ``if_match`` None means whichever version is there. Raises
        `BlobNotFound` when there is no such key, `BlobChanged` when there is another version (also when the
        range lies outside of what is there).
        """
        ...

    def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Sequence[BlobStat]]:
        """Pages of at most 1,000 blobs whose key begins with ``prefix`` and sorts after ``start_after``, in the
        byte order of their UTF-8 keys. ``content_type`` and ``crc32`` are None. A local directory without
        children is listed as its path with a ``/`` at the end and size 0.
        """
        ...

    async def put(self, key: str, body: bytes) -> None:
        """Write a small object whole: a reader sees the old content or the new, durable on return."""
        ...

    async def probe(self) -> None:
        """Return if the bucket can be reached and read, raise as every method does otherwise. Cheap."""
        ...

    async def aclose(self) -> None:
        """Release what the store holds; open readers may fail. Idempotent."""
        ...


@runtime_checkable
class PresignsDownloads(Protocol):
    """Ability: downloads without the proxy in between."""

    async def presign_get(self, key: str, *, expires_in: int, content_disposition: str, content_type: str) -> str:
        """A URL that GETs the blob for ``expires_in`` seconds, answered with these two headers."""
        ...


@runtime_checkable
class ReadsCrc32(Protocol):
    """Ability: content can be read so cheaply that its CRC-32 may be computed at mint."""

    async def read_crc32s(self, versions: Sequence[tuple[str, str]], *, timeout: float) -> Sequence[int | None]:
        """The CRC-32 of each version, given as key and ETag: read whole, within ``timeout`` seconds for all.

        None for one that the time did not suffice for, and for one that is not there in this version any more.
        """
        ...


@dataclass(frozen=True, slots=True)
class UploadTerms:
    """What an upload is held to. ``size`` in bytes and ``crc32`` of the content, None where it was not announced."""

    content_type: str | None = None
    size: int | None = None
    crc32: int | None = None


@dataclass(frozen=True, slots=True)
class PresignedPut:
    """A URL to PUT to, and the headers without which it is refused."""

    url: str
    headers: Mapping[str, str]


@runtime_checkable
class PresignsUploads(Protocol):
    """Ability: uploads without the proxy in between."""

    async def presign_put(self, key: str, terms: UploadTerms, *, expires_in: int) -> PresignedPut:
        """A URL that creates ``key`` within ``expires_in`` seconds, once, and with nothing but what ``terms`` say.

        Signed over the content type, ``If-None-Match: *`` (a second body is refused), and over Content-Length and
        CRC-32 when given. Raises `UnsafeName` for a key that the bucket cannot hold.
        """
        ...


@runtime_checkable
class ReceivesUploads(Protocol):
    """Ability: a body is streamed in, and the blob is there when all of it is, or not at all."""

    async def receive(
        self, key: str, body: AsyncIterable[bytes | memoryview], terms: UploadTerms, *, max_bytes: int
    ) -> BlobStat:
        """Create ``key`` from ``body`` and return it, durable, its CRC-32 computed on the way.

        Until the return there is no blob, and no reader sees a part of one; a crash, a cancellation, an exception of
        ``body`` or one of these leaves none: `SizeMismatch` and `ChecksumMismatch` against ``terms``,
        `PayloadTooLarge` beyond ``max_bytes``, `BlobExists` when there is a blob already, also one that came
        meanwhile; `UnsafeName` for a key that the bucket cannot hold. Memory is bounded whatever the size.
        """
        ...


@runtime_checkable
class DeletesBlobs(Protocol):
    """Ability: blobs are removed. Removing what is not there is no error."""

    async def delete_many(self, keys: Sequence[str]) -> None:
        """Remove these blobs, at most 1,000. When it raises, some of them may be gone."""
        ...

    def erase(self, prefix: str) -> AsyncIterator[int]:
        """Remove everything under ``prefix``, which is not empty and ends in ``/``; how many after each step.

        Everything means: every version where the bucket keeps versions, and uploads that are not complete. Begun
        again after an exception or a crash it goes on with what is left; when it ends, nothing was there that was
        there when it began. Folders of a local bucket that this leaves empty are removed, too.
        """
        ...

    async def discard_uploads(self, prefix: str, *, older_than: float) -> int:
        """Abort uploads under ``prefix`` that were begun before ``older_than`` (seconds since the epoch) and never
        completed, as a killed process leaves them; how many."""
        ...
