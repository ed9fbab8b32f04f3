"""What the manager asks the storage proxy: one method for each route of its RPC.

The law: every call here is idempotent, because a call that got no answer is sent again (`rpc_transport`). An upload
that is prepared again keeps its id and gets a new URL, one that is completed again gives the same record, and a run
that is deleted again stays deleted.
"""

import asyncio
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp
from pydantic import BaseModel, TypeAdapter

from manager_api.rpc_transport import Call, RpcTransport
from storage_proxy.common.errors import NotFound, StorageUnavailable
from storage_proxy.common.wire import (
    ArchiveSelection,
    BlobAddress,
    BlobDescription,
    PlannedArchive,
    PlanRequest,
    PreparedUpload,
    RunAccess,
    RunBlob,
    RunBlobs,
    RunBlobsPage,
    RunBlobsQuery,
    RunDescription,
    SelectedBlob,
    UploadOrder,
)

_BLOBS = "/rpc/v1/blobs"
_ARCHIVES = "/rpc/v1/archives"
_UPLOADS = "/rpc/v1/uploads"
_RUNS = "/rpc/v1/runs"
_HEALTH = "/rpc/v1/health"
_PORTION = 1000
_ENTRIES = TypeAdapter(list[SelectedBlob])


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds for a call, retries included: ``plan`` for an archive's, ``complete`` for an upload's, ``ask`` else."""

    ask: float = 40.0
    plan: float = 600.0
    complete: float = 120.0


class ProxyClient:
    """The proxy, as the manager knows it. Every method raises as the proxy says, and as `RpcTransport.ask`."""

    def __init__(self, transport: RpcTransport, deadlines: Deadlines) -> None:
        self._transport = transport
        self._deadlines = deadlines

    async def stat_blob(self, address: BlobAddress, *, request_id: str) -> BlobDescription:
        """The blob as it is now."""
        call = Call("stat_blob", "GET", _BLOBS, self._deadlines.ask, request_id, _query(address))
        return await self._transport.ask(call, BlobDescription)

    async def plan_archive(self, selection: ArchiveSelection, access: RunAccess, *, request_id: str) -> PlannedArchive:
        """The archive of ``selection``, decided and kept; asking again gives the same one.

        A run is told apart by ``access``; entries and prefixes are the caller's to check.
        """
        buckets = None if selection.run_id is None else access.buckets
        wanted = PlanRequest.model_construct(**_fields(selection), buckets=buckets)
        body = await asyncio.to_thread(_plan_body, wanted)
        call = Call("plan_archive", "POST", _ARCHIVES, self._deadlines.plan, request_id, body=body)
        return await self._transport.ask(call, PlannedArchive)

    async def prepare_upload(self, order: UploadOrder, *, request_id: str) -> PreparedUpload:
        """The upload, announced: where it is to be sent."""
        call = Call("prepare_upload", "POST", _UPLOADS, self._deadlines.ask, request_id, body=_body(order))
        return await self._transport.ask(call, PreparedUpload)

    async def complete_upload(self, upload_id: str, access: RunAccess, *, request_id: str) -> RunBlob:
        """The record of the upload's blob, verified now. Raises `NotFound` when there is no such upload."""
        path = f"{_UPLOADS}/{_segment(upload_id)}/complete"
        timeout, query = self._deadlines.complete, _query(access)
        call = Call("complete_upload", "POST", path, timeout, request_id, query, for_caller=(NotFound,))
        return await self._transport.ask(call, RunBlob)

    async def describe_run(self, run_id: str, access: RunAccess, *, request_id: str) -> RunDescription:
        """The run as it is now."""
        path = f"{_RUNS}/{_segment(run_id)}"
        call = Call("describe_run", "GET", path, self._deadlines.ask, request_id, _query(access))
        return await self._transport.ask(call, RunDescription)

    async def list_run_blobs(self, run_id: str, page: RunBlobsPage, access: RunAccess, *, request_id: str) -> RunBlobs:
        """A page of the run's blobs."""
        path = f"{_RUNS}/{_segment(run_id)}/blobs"
        query = _query(RunBlobsQuery(**_fields(page), buckets=access.buckets))
        call = Call("list_run_blobs", "GET", path, self._deadlines.ask, request_id, query)
        return await self._transport.ask(call, RunBlobs)

    async def delete_run(self, run_id: str, access: RunAccess, *, request_id: str) -> RunDescription:
        """The run, hidden from now on."""
        path = f"{_RUNS}/{_segment(run_id)}"
        call = Call("delete_run", "DELETE", path, self._deadlines.ask, request_id, _query(access))
        return await self._transport.ask(call, RunDescription)

    async def probe(self) -> None:
        """Whether the proxy answers and accepts our secret; one try. Raises `StorageUnavailable` with the reason."""
        try:
            status = await self._transport.status_of(Call("probe", "GET", _HEALTH, self._deadlines.ask, "probe"))
        except (aiohttp.ClientError, TimeoutError) as error:
            raise StorageUnavailable("cannot be reached") from error
        if status == 401:
            raise StorageUnavailable("refuses the RPC secret")
        if status != 200:
            raise StorageUnavailable(f"answers {status}")


def _fields(model: BaseModel) -> dict[str, Any]:
    """The fields as they are: without checking a hundred thousand entries again."""
    return {name: getattr(model, name) for name in type(model).model_fields}


def _body(model: BaseModel) -> bytes:
    return model.model_dump_json(exclude_none=True).encode()


def _plan_body(wanted: PlanRequest) -> bytes:
    """The request in portions: one call of the serializer keeps all other threads waiting until it returns."""
    rest = wanted.model_dump_json(exclude_none=True, exclude={"entries"}).encode()
    if wanted.entries is None:
        return rest
    portions = (
        _ENTRIES.dump_json(wanted.entries[first : first + _PORTION], exclude_none=True)[1:-1]
        for first in range(0, len(wanted.entries), _PORTION)
    )
    return b"".join((rest[:-1], b',"entries":[', b",".join(portions), b"]}"))


def _query(model: BaseModel) -> dict[str, str]:
    """The fields as parameters: what is none is left out, what is no text is written as in JSON."""
    fields = model.model_dump(mode="json", exclude_none=True)
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}


def _segment(text: str) -> str:
    """``text`` as one segment of a path, whatever is in it."""
    return quote(text, safe="")
