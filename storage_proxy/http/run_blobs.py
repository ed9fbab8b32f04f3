"""A blob's record as the API writes it."""

from storage_proxy.common.events import run_key
from storage_proxy.common.values import crc32_hex, moment
from storage_proxy.common.wire import RunBlob
from storage_proxy.state.records import BlobRecord


def run_blob(run_id: str, path: str, record: BlobRecord, uri: str | None = None) -> RunBlob:
    """One blob of a run. Until it is verified, size, CRC-32 and type are what was announced; no ETag is known."""
    return RunBlob(
        path=path,
        key=run_key(run_id, path),
        bucket=record.bucket,
        size=record.size,
        etag=record.etag or None,
        crc32=crc32_hex(record.crc32),
        content_type=record.content_type,
        state=record.state.value,
        created_at=moment(record.created_at),
        attributes=dict(record.attributes),
        uri=uri,
    )
