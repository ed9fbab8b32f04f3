"""What the manager asks of runs: what one is, which blobs it has, and that it is to be deleted."""

from collections.abc import Callable

from storage_proxy.common.errors import InvalidRequest, RunNotFound, StateUnavailable
from storage_proxy.common.service.endpoints import endpoint
from storage_proxy.common.wire import RunAccess, RunBlob, RunBlobs, RunBlobsQuery, RunDescription, RunId, Wire
from storage_proxy.http.run_blobs import run_blob
from storage_proxy.lifecycle.runs import Runs
from storage_proxy.state.records import BlobRecord, BlobState

MakeUri = Callable[[str, str, BlobRecord], str]
"""The encrypted URI of a run's verified blob, given the run, the path and the record."""


class RunPath(Wire):
    """Which run."""

    run_id: RunId


class RunHandlers:
    """The runs' endpoints of the RPC listener. ``make_uri`` is None where no keys for URIs are configured."""

    def __init__(self, runs: Runs, make_uri: MakeUri | None = None) -> None:
        self._runs = runs
        self._make_uri = make_uri

    @endpoint("GET", "/rpc/v1/runs/{run_id}", errors=(RunNotFound, StateUnavailable))
    async def describe_run(self, path: RunPath, query: RunAccess) -> RunDescription:
        """A run as it is now."""
        return await self._runs.describe(path.run_id, query)

    @endpoint("GET", "/rpc/v1/runs/{run_id}/blobs", errors=(RunNotFound, StateUnavailable))
    async def list_run_blobs(self, path: RunPath, query: RunBlobsQuery) -> RunBlobs:
        """A page of a run's blobs. It may be short, or empty, and not the last: `next_cursor` tells."""
        if query.uris and self._make_uri is None:
            raise InvalidRequest("No blob_uris.keys are configured")
        rows, next_cursor = await self._runs.page(path.run_id, query)
        blobs = [self._blob(path.run_id, blob_path, record, with_uri=query.uris) for blob_path, record in rows]
        return RunBlobs(blobs=blobs, next_cursor=next_cursor)

    @endpoint("DELETE", "/rpc/v1/runs/{run_id}", status=202, errors=(RunNotFound, StateUnavailable))
    async def delete_run(self, path: RunPath, query: RunAccess) -> RunDescription:
        """Hide a run at once and for good; its objects are removed after. Again, or for an unknown one, no error."""
        return await self._runs.delete(path.run_id, query)

    def _blob(self, run_id: str, path: str, record: BlobRecord, *, with_uri: bool) -> RunBlob:
        uri = None
        if with_uri and self._make_uri is not None and record.state is BlobState.VERIFIED:
            uri = self._make_uri(run_id, path, record)
        return run_blob(run_id, path, record, uri)
