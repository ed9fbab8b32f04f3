"""The client listener's batches: encrypted URIs come in, one multipart body of their blobs goes out.

The law: a URI is its own permission, and what fails before its part has begun is told in its part; what fails later
aborts the connection. A log names a URI by its hash alone.
"""

import json
import logging
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from aiohttp import HttpVersion11, hdrs, web
from pydantic import Field

from storage_proxy.common.errors import (
    Busy,
    HttpVersionNotSupported,
    PayloadTooLarge,
    SelectionTooLarge,
    TooManyDownloads,
    UnsupportedMediaType,
)
from storage_proxy.common.names import default_filename
from storage_proxy.common.problems import PROBLEM_CONTENT_TYPE, problem_of
from storage_proxy.common.service.endpoints import endpoint
from storage_proxy.common.service.middleware import REQUEST_ID
from storage_proxy.common.wire import Wire
from storage_proxy.downloads.blob_batches import MAX_BATCH_URIS, BatchPart, BlobBatches
from storage_proxy.downloads.blob_uris import MAX_URI_LENGTH, uri_hash
from storage_proxy.downloads.bodies import Body, Progress
from storage_proxy.downloads.downloads import DEFAULT_CONTENT_TYPE
from storage_proxy.downloads.metrics import DownloadMetrics
from storage_proxy.downloads.slots import DownloadSlots
from storage_proxy.downloads.sources import Chunk
from storage_proxy.formats.multipart import closing, form_data, part_head
from storage_proxy.http.client_api import GUARDS
from storage_proxy.http.transfers import Download, Transfers

MAX_BATCH_BODY_BYTES = MAX_BATCH_URIS * (MAX_URI_LENGTH + 8) + 1024
_OPERATION = "batch"
_JOINED_BYTES = 64 << 10
"""A blob of this size or less is written with the head of its part."""
_log = logging.getLogger(__name__)


class BlobBatch(Wire):
    """Which blobs."""

    uris: Annotated[
        list[Annotated[str, Field(max_length=MAX_URI_LENGTH)]],
        Field(min_length=1, fail_fast=True, description=f"Encrypted URIs of blobs, at most {MAX_BATCH_URIS}."),
    ]


@dataclass(frozen=True, slots=True)
class _Answer:
    """What all parts of one answer share."""

    uris: Sequence[str]
    boundary: str
    request_id: str


class BatchHandlers:
    """The endpoint of blob batches."""

    def __init__(
        self, batches: BlobBatches, slots: DownloadSlots, transfers: Transfers, metrics: DownloadMetrics
    ) -> None:
        self._batches = batches
        self._slots = slots
        self._transfers = transfers
        self._metrics = metrics

    @endpoint(
        "POST",
        "/blob-batch",
        errors=(
            PayloadTooLarge,
            SelectionTooLarge,
            UnsupportedMediaType,
            TooManyDownloads,
            Busy,
            HttpVersionNotSupported,
        ),
    )
    async def blob_batch(self, request: web.Request, body: BlobBatch) -> web.StreamResponse:
        """Download the blobs that encrypted URIs name, as one multipart/form-data.

        One part a URI, in order, named by its index. A URI that cannot be served is a part of type
        `application/problem+json`.
        """
        if request.version < HttpVersion11:  # only the close would end the body, and a cut would look like the end
            raise HttpVersionNotSupported("The answer's length is not known: this needs HTTP/1.1")
        if len(body.uris) > MAX_BATCH_URIS:
            reason = f"has more than {MAX_BATCH_URIS} elements"
            raise SelectionTooLarge(errors=[{"loc": ["uris"], "msg": reason}])
        answer = _Answer(body.uris, secrets.token_hex(24), request[REQUEST_ID])
        headers = {hdrs.CONTENT_TYPE: f"multipart/form-data; boundary={answer.boundary}", **GUARDS}
        response = web.StreamResponse(headers=headers)
        # Who asks is not known. The first URI stands for it: one client repeating itself meets the bound of a token.
        permitted_by = uri_hash(body.uris[0])
        with self._slots.taken(f"{_OPERATION} {permitted_by}"):
            download = Download(_OPERATION, permitted_by, len(body.uris))
            await self._transfers.send(request, response, Body(partial(self._chunks, answer)), download)
        return response

    async def _chunks(self, answer: _Answer, progress: Progress) -> AsyncGenerator[Chunk, None]:
        async with aclosing(self._batches.parts(answer.uris)) as parts:
            async for part in parts:
                progress.has_content = True
                outcome = "aborted"
                try:
                    async with aclosing(_part_chunks(answer, part)) as chunks:
                        async for chunk in chunks:
                            yield chunk
                    outcome = part.problem.code if part.problem else "served"
                finally:
                    self._report(answer, part, outcome)
        yield closing(answer.boundary)

    def _report(self, answer: _Answer, part: BatchPart, outcome: str) -> None:
        self._metrics.batch_parts.labels(outcome).inc()
        _log.info(
            "blob uri",
            extra={
                "request_id": answer.request_id,
                "uri_hash": uri_hash(answer.uris[part.index]),
                "run_id": part.target.run_id if part.target else None,
                "bytes": part.stat.size if part.stat else 0,
                "outcome": outcome,
            },
        )


async def _part_chunks(answer: _Answer, part: BatchPart) -> AsyncGenerator[Chunk, None]:
    content = b""
    headers: dict[str, str] = {}
    if part.problem is not None:
        problem = problem_of(part.problem, answer.request_id)
        content = json.dumps(problem, ensure_ascii=False).encode(errors="backslashreplace")
        headers = {
            hdrs.CONTENT_DISPOSITION: form_data(str(part.index), None),
            hdrs.CONTENT_TYPE: PROBLEM_CONTENT_TYPE,
            hdrs.CONTENT_LENGTH: str(len(content)),
        }
    elif part.stat is not None:
        headers = {
            hdrs.CONTENT_DISPOSITION: form_data(str(part.index), default_filename(part.stat.key)),
            hdrs.CONTENT_TYPE: part.stat.content_type or DEFAULT_CONTENT_TYPE,
            hdrs.CONTENT_LENGTH: str(part.stat.size),
            "ETag": part.stat.etag,
        }
        if part.stat.content_encoding:
            headers[hdrs.CONTENT_ENCODING] = part.stat.content_encoding
    head = part_head(answer.boundary, headers, first=part.index == 0)
    if part.body is None:
        yield head + content
        return
    if part.body.length > _JOINED_BYTES:
        yield head
        head = b""
    while chunk := await part.body.read():
        yield head + chunk if head else chunk
        head = b""
    if head:
        yield head
