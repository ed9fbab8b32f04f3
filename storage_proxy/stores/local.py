"""A bucket that is a local directory: a key is a path in it, a version is an inode, a size and a time.

The law: every call is one hop to a thread that opens, checks and reads; the version is checked again after each
read, before its bytes are given out, so a file modified in place is never served as a mixture.
"""

import asyncio
import mimetypes
import os
import threading
from collections.abc import AsyncIterable, AsyncIterator, MutableSequence, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path

from isal import isal_zlib

from storage_proxy.common.errors import (
    BlobChanged,
    BlobNotFound,
    StorageError,
    StorageTimeout,
    UnsafeName,
)
from storage_proxy.stores.buffers import BufferPool
from storage_proxy.stores.local_deletion import Erasure, delete_all, discard_temporaries
from storage_proxy.stores.local_listing import FOLDER_ETAG, Listing, file_stat, folder_marker
from storage_proxy.stores.local_reader import Begun, LocalReader
from storage_proxy.stores.local_threads import Threads
from storage_proxy.stores.local_tree import Opened, Tree, is_absent, locate, read_version
from storage_proxy.stores.local_uploads import Upload
from storage_proxy.stores.port import BlobReader, BlobStat, UploadTerms
from storage_proxy.stores.uploads import IncomingBody, finish

_PACKED = {
    "gzip": "application/gzip",
    "compress": "application/x-compress",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
    "br": "application/x-brotli",
}

_FIRST_BYTES = 64 << 10
"""Read when a blob is opened: all of a small one."""


class LocalBlobStore:
    """The `BlobStore` over the directory ``root``, with the abilities `ReadsCrc32`, `ReceivesUploads`, `DeletesBlobs`.

    A read may take ``stall_timeout`` seconds, any other call ``request_timeout``. Downloads are read through
    ``buffers``; what is written or summed goes ``chunk_bytes`` at a time. At most ``threads`` threads do it: one that
    the file system blocks stays blocked, its caller does not.
    """

    def __init__(
        self,
        root: Path,
        *,
        stall_timeout: float = 30.0,
        request_timeout: float = 30.0,
        chunk_bytes: int = 1 << 20,
        threads: int = 16,
        buffers: BufferPool | None = None,
    ) -> None:
        self._tree = Tree(root)
        self._stall_timeout = stall_timeout
        self._request_timeout = request_timeout
        self._chunk_bytes = chunk_bytes
        self._buffers = buffers or BufferPool()
        self._threads = Threads(threads, "local-blobs")
        # Whole files are summed elsewhere, so that they never keep reads waiting.
        self._summing = Threads(2, "local-crc32")
        self._types = mimetypes.MimeTypes()

    async def stat(self, key: str) -> BlobStat | None:
        return await self._threads.run(partial(self._stat, key), self._request_timeout)

    async def open(self, key: str, *, start: int, stop: int, if_match: str | None) -> BlobReader:
        work = partial(self._begin, key, start, stop, if_match)
        future = self._threads.submit(work)
        begun = await self._threads.outcome(future, self._request_timeout, _abandon)
        return LocalReader(self._threads, self._buffers, begun, start, stop, timeout=self._stall_timeout)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Sequence[BlobStat]]:
        try:
            beginning = prefix.encode("utf-8", "surrogateescape")
            after = start_after.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            return
        listing = Listing(self._tree, beginning, after)
        while page := await self._threads.run(listing.next_page, self._request_timeout):
            yield page

    async def put(self, key: str, body: bytes) -> None:
        await self._threads.run(partial(self._put, key, body), self._request_timeout)

    async def probe(self) -> None:
        await self._threads.run(self._probe, self._request_timeout)

    async def read_crc32s(self, versions: Sequence[tuple[str, str]], *, timeout: float) -> Sequence[int | None]:
        given_up = threading.Event()
        sums: list[int | None] = []
        future = self._summing.submit(partial(self._sum_all, versions, given_up, sums))
        try:
            await self._summing.outcome(future, timeout)
        except StorageTimeout:
            pass
        finally:
            given_up.set()
        done = list(sums)
        return done + [None] * (len(versions) - len(done))

    async def receive(
        self, key: str, body: AsyncIterable[bytes | memoryview], terms: UploadTerms, *, max_bytes: int
    ) -> BlobStat:
        """As the port says; the type is not kept but guessed from the key, and a key ending in ``/`` is unsafe."""
        where = locate(key)
        if where is None or where.folder:
            raise UnsafeName
        upload = Upload(self._tree, where.parts)
        incoming = IncomingBody(body, terms, max_bytes=max_bytes)
        try:
            await self._threads.run(upload.begin, self._request_timeout)
            await self._write_all(upload, incoming)
            status = await self._threads.run(upload.commit, self._request_timeout)
        except BaseException:
            # Not by the bucket's own threads: they may be closed, or all of them stuck.
            await finish(asyncio.wait_for(asyncio.to_thread(upload.discard), self._request_timeout))
            raise
        upload.close()
        return replace(file_stat(key, status, self._content_type(key)), crc32=incoming.crc32)

    async def _write_all(self, upload: Upload, incoming: IncomingBody) -> None:
        """One piece is written while the next one comes in."""
        writing: Future[None] | None = None
        async with aclosing(incoming.pieces(self._chunk_bytes)) as pieces:
            async for piece in pieces:
                if writing is not None:
                    await self._threads.outcome(writing, self._stall_timeout)
                writing = self._threads.submit(partial(upload.write, piece))
        if writing is not None:
            await self._threads.outcome(writing, self._stall_timeout)

    async def delete_many(self, keys: Sequence[str]) -> None:
        locations = [where for where in map(locate, keys) if where is not None]
        await self._threads.run(partial(delete_all, self._tree, locations), self._request_timeout)

    async def erase(self, prefix: str) -> AsyncIterator[int]:
        """As the port says, but for uploads: a temporary file does not tell its key, and is left to time."""
        within = locate(prefix + "x") if prefix.endswith("/") else None
        if within is None:
            return
        erasure = Erasure(self._tree, within.parts[:-1])
        while (removed := await self._threads.run(erasure.next_step, self._request_timeout)) is not None:
            if removed:
                yield removed

    async def discard_uploads(self, prefix: str, *, older_than: float) -> int:
        """As the port says, of every prefix: a temporary file does not tell its key. It is as old as its last byte."""
        return await self._threads.run(partial(discard_temporaries, self._tree, older_than), self._request_timeout)

    async def aclose(self) -> None:
        self._threads.shut_down()
        self._summing.shut_down()

    # What follows runs in threads.

    def _stat(self, key: str) -> BlobStat | None:
        where = locate(key)
        if where is None:
            return None
        try:
            if where.folder:
                with self._tree.directory(where.parts, readable=True) as fd:
                    empty = not self._tree.names(fd, where.parts)
                    return folder_marker(b"/".join((*where.parts, b"")), os.fstat(fd)) if empty else None
            status = self._tree.status(where.parts)
        except OSError as error:
            if is_absent(error):
                return None
            raise
        return None if status is None else file_stat(key, status, self._content_type(key))

    def _content_type(self, key: str) -> str | None:
        # "./" keeps a name such as "data:text/html," from being taken for a URL.
        kind, packing = self._types.guess_type("./" + key.rpartition("/")[2])
        return kind if packing is None else _PACKED.get(packing)

    def _open(self, key: str, if_match: str | None) -> Opened:
        """The file in the version asked for; the caller closes it."""
        where = locate(key)
        if where is None:
            raise BlobNotFound
        if where.folder:
            # A folder marker has no bytes, so no range of it can be opened.
            raise BlobNotFound if self._stat(key) is None else BlobChanged
        try:
            opened = self._tree.open(where.parts)
        except OSError as error:
            if is_absent(error):
                raise BlobNotFound from error
            raise
        if opened is None:
            raise BlobNotFound
        if if_match is not None and opened.etag != if_match:
            os.close(opened.fd)
            raise BlobChanged
        return opened

    def _begin(self, key: str, start: int, stop: int, if_match: str | None) -> Begun:
        fd, etag, size = self._open(key, if_match)
        try:
            if stop > size:
                raise BlobChanged
            first = read_version(fd, etag, start, min(self._chunk_bytes, _FIRST_BYTES, stop - start))
        except BaseException:
            os.close(fd)
            raise
        if start + len(first) < stop:
            return Begun(fd, etag, first)
        os.close(fd)
        return Begun(None, etag, first)

    def _sum_all(
        self, versions: Sequence[tuple[str, str]], given_up: threading.Event, sums: MutableSequence[int | None]
    ) -> None:
        for key, etag in versions:
            if given_up.is_set():
                return
            try:
                sums.append(self._sum(key, etag, given_up))
            except (BlobNotFound, BlobChanged):
                sums.append(None)

    def _sum(self, key: str, if_match: str, given_up: threading.Event) -> int | None:
        if key.endswith("/") and if_match == FOLDER_ETAG and self._stat(key) is not None:
            return 0
        fd, etag, size = self._open(key, if_match)
        try:
            crc = offset = 0
            while offset < size and not given_up.is_set():
                chunk = read_version(fd, etag, offset, min(self._chunk_bytes, size - offset))
                crc = isal_zlib.crc32(chunk, crc)
                offset += len(chunk)
        finally:
            os.close(fd)
        return crc if offset == size else None

    def _put(self, key: str, body: bytes) -> None:
        where = locate(key)
        if where is None or (where.folder and body):
            raise StorageError("The bucket cannot hold this key")
        if where.folder:
            self._tree.make_directory(where.parts)
        else:
            self._tree.write(where.parts, body)

    def _probe(self) -> None:
        with self._tree.directory((), readable=True) as fd, os.scandir(fd) as entries:
            next(entries, None)


def _abandon(begun: Begun) -> None:
    if begun.fd is not None:
        os.close(begun.fd)
