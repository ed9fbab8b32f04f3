"""What the write path counts."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.005, 0.02, 0.1, 0.5, 1, 5, 20, 60, 300, float("inf"))


class IngestMetrics:
    """The metrics of uploads and of ingestion, in ``registry``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.messages = Counter(
            "storage_proxy_ingest_messages",
            "Messages of the ingest topic, by what became of them",
            ["outcome"],
            registry=registry,
        )
        self.dead_letters = Counter(
            "storage_proxy_ingest_dead_letters", "Messages sent to the dead-letter topic", registry=registry
        )
        self.batch_seconds = Histogram(
            "storage_proxy_ingest_batch_seconds",
            "Duration of a batch of messages",
            buckets=_SECONDS,
            registry=registry,
        )
        self.crc32_bytes = Counter(
            "storage_proxy_ingest_crc32_bytes", "Bytes read to learn CRC-32s", ["bucket"], registry=registry
        )
        self.looks = Counter(
            "storage_proxy_reconciler_looks",
            "Pending blobs looked at, by what was found",
            ["outcome"],
            registry=registry,
        )
        self.prepared = Counter(
            "storage_proxy_uploads_prepared", "Uploads that were prepared", ["via"], registry=registry
        )
        self.received = Counter(
            "storage_proxy_uploads_received",
            "Uploads through the proxy that ended, by how",
            ["outcome"],
            registry=registry,
        )
        self.received_bytes = Counter("storage_proxy_upload_bytes", "Body bytes taken from clients", registry=registry)
        self.receiving = Gauge("storage_proxy_uploads_active", "Uploads being taken now", registry=registry)
