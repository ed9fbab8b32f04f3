"""One blob of a run, as the programs tell each other of it."""

from storage_proxy.common.events import run_key
from storage_proxy.common.values import crc32_hex, moment
from storage_proxy.common.wire import RunBlob
from storage_proxy.state.records import BlobRecord


def run_blob(run_id: str, path: str, record: BlobRecord, uri: str | None = None) -> RunBlob:
    """What ``record`` says of the blob at ``path``."""
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
