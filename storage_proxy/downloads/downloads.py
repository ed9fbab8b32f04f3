"""From a grant to what it may have: a representation with its validators, its exact size and its bytes.

The law: a blob and an archive are one kind of thing; everything that can fail is asked before the first byte.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from storage_proxy.common.errors import BlobChanged, InvalidRequest
from storage_proxy.common.names import unsafe_filename_reason
from storage_proxy.common.tokens import ArchiveGrant, BlobGrant, Compression, Disposition, OnMissing
from storage_proxy.common.wire import ArchiveSelection, SelectedBlob
from storage_proxy.downloads.archive_crcs import ArchiveCrcs
from storage_proxy.downloads.blobs import Blobs
from storage_proxy.downloads.bodies import ArchiveBody, Body, Progress, blob_bytes
from storage_proxy.downloads.deflated import DeflatedBody, DeflateThreads, deflated_etag
from storage_proxy.downloads.manifest import ManifestHead
from storage_proxy.downloads.manifests import ManifestStore, OpenedArchive, PlanCache, in_memory
from storage_proxy.downloads.planner import ArchivePlanner
from storage_proxy.downloads.prefetch import Prefetch
from storage_proxy.downloads.sources import Chunk, Pin, Sources
from storage_proxy.stores.port import PresignsDownloads

DEFAULT_CONTENT_TYPE = "application/octet-stream"
REDIRECT_SECONDS = 60
INLINE_CRC32_BYTES = 64 << 20
"""What each request for files that a token lists itself may read to know their CRC-32s: little, and by size alone, so
that every request comes to the same archive."""

Presign = Callable[[str, str], Awaitable[str]]
"""From a Content-Disposition and a Content-Type to a URL that answers with them."""


@dataclass(frozen=True, slots=True)
class Representation:
    """What a GET answers. ``last_modified`` is in epoch seconds, ``size`` in bytes, None where only the end will tell;
    ``dated`` says whether another content would have another ``last_modified``, but for the clock's precision;
    ``ranges`` whether a Range can be answered, which takes a size; ``pinned`` whether a change of its blobs is the
    link's end (410) or a reason to look again. ``body`` gives bytes from (included) to (excluded; None: the end).
    """

    etag: str
    size: int | None
    last_modified: int
    dated: bool
    content_type: str
    content_encoding: str | None
    filename: str
    disposition: Disposition
    entries: int
    ranges: bool
    pinned: bool
    body: Callable[[int, int | None], Body]
    presign: Presign | None = None


class Downloads:
    """Answers grants from what is visible of the buckets.

    ``redirecting`` names the buckets whose blobs may go by a presigned URL.
    """

    def __init__(
        self,
        blobs: Blobs,
        sources: Sources,
        prefetch: Prefetch,
        manifests: ManifestStore,
        planner: ArchivePlanner,
        cache: PlanCache,
        crcs: ArchiveCrcs,
        deflate_threads: DeflateThreads,
        *,
        redirecting: frozenset[str] = frozenset(),
    ) -> None:
        self._blobs = blobs
        self._sources = sources
        self._prefetch = prefetch
        self._manifests = manifests
        self._planner = planner
        self._cache = cache
        self._crcs = crcs
        self._deflate_threads = deflate_threads
        self._redirecting = redirecting

    async def blob(self, grant: BlobGrant) -> Representation:
        """The blob as it is now. Raises `BlobNotFound`, `BucketNotFound`, and as its store does."""
        grant.refuse_limits()
        _check_filename(grant.filename)
        stat = await self._blobs.require(grant.bucket, grant.key)
        content_type = stat.content_type or DEFAULT_CONTENT_TYPE
        pin = Pin(grant.bucket, stat.key, stat.etag, stat.size)
        return Representation(
            etag=stat.etag,
            size=stat.size,
            last_modified=stat.last_modified,
            dated=True,
            content_type=content_type,
            content_encoding=stat.content_encoding,
            filename=grant.filename,
            disposition=grant.disposition,
            entries=1,
            ranges=True,
            pinned=False,
            body=lambda start, stop: Body(
                partial(blob_bytes, self._sources, pin, stat.crc32, start, pin.size if stop is None else stop)
            ),
            presign=self._presign(grant),
        )

    async def archive(self, grant: ArchiveGrant) -> Representation:
        """The archive that the grant pins, or of the files it lists, as they are now.

        Raises `BlobNotFound`, `BucketNotFound`, `BlobChanged` (a run of it was deleted), `InvalidRequest`,
        `UnsafeName`, as the stores do, and `StateUnavailable` where a run's blobs are in it.
        """
        grant.refuse_limits()
        _check_filename(grant.filename)
        archive = await self._planned(grant)
        head = archive.head
        if grant.format is not head.layout.format:
            raise InvalidRequest(f"The token says {grant.format}, its manifest {head.layout.format}")
        if head.runs and await self._blobs.runs.deleted(head.runs):
            raise BlobChanged("A run was deleted whose blobs are in this archive")
        if grant.compression is Compression.DEFLATE:
            return self._deflated(grant, archive)
        remembered = await self._crcs.of(archive) if head.plan.unknown_crcs else None

        def chunks(start: int, stop: int | None, progress: Progress) -> AsyncGenerator[Chunk, None]:
            learn = partial(self._crcs.note, archive)
            body = ArchiveBody(archive, self._sources, self._prefetch, progress, remembered=remembered, learn=learn)
            return body.chunks(start, head.plan.size if stop is None else stop)

        return _of_archive(
            grant,
            head,
            etag=head.etag,
            size=head.plan.size,
            ranges=not head.plan.unknown_crcs or remembered is not None,
            body=lambda start, stop: Body(partial(chunks, start, stop)),
        )

    def _deflated(self, grant: ArchiveGrant, archive: OpenedArchive) -> Representation:
        def chunks(progress: Progress) -> AsyncGenerator[Chunk, None]:
            learn = partial(self._crcs.note, archive)
            body = DeflatedBody(archive, self._sources, self._prefetch, progress, self._deflate_threads, learn=learn)
            return body.chunks()

        etag = deflated_etag(archive.head.etag)
        return _of_archive(grant, archive.head, etag=etag, size=None, ranges=False, body=lambda *_: Body(chunks))

    async def _planned(self, grant: ArchiveGrant) -> OpenedArchive:
        if grant.manifest is not None:
            return await self._manifests.open(grant.manifest)
        selection = ArchiveSelection(
            bucket=grant.bucket,
            entries=[SelectedBlob(key=file.key, name=file.name) for file in grant.files or ()],
            format=grant.format,
            compression=grant.compression,
            on_missing=grant.on_missing or OnMissing.FAIL,
        )
        plan = await self._planner.plan(selection, crc32_read_bytes=INLINE_CRC32_BYTES)
        return in_memory(plan.manifest, self._cache)

    def _presign(self, grant: BlobGrant) -> Presign | None:
        store = self._blobs.buckets.get(grant.bucket)
        may = grant.bucket in self._redirecting and grant.disposition is Disposition.ATTACHMENT
        if not may or grant.limited or not isinstance(store, PresignsDownloads):
            return None

        async def presign(content_disposition: str, content_type: str) -> str:
            return await store.presign_get(
                grant.key,
                expires_in=REDIRECT_SECONDS,
                content_disposition=content_disposition,
                content_type=content_type,
            )

        return presign


def _of_archive(
    grant: ArchiveGrant,
    head: ManifestHead,
    *,
    etag: str,
    size: int | None,
    ranges: bool,
    body: Callable[[int, int | None], Body],
) -> Representation:
    return Representation(
        etag=etag,
        size=size,
        last_modified=head.last_modified,
        dated=grant.manifest is not None,  # listed files are looked up anew, and the latest of them may stay as it was
        content_type=head.layout.media_type,
        content_encoding=None,
        filename=grant.filename,
        disposition=Disposition.ATTACHMENT,
        entries=head.plan.entries,
        ranges=ranges,
        pinned=True,
        body=body,
    )


def _check_filename(filename: str) -> None:
    if reason := unsafe_filename_reason(filename):
        raise InvalidRequest(f"The token's filename {reason}")
