"""What reaches outside: buckets, state and bus, each chosen by the settings and closed by the stack it is given to.

The law: nothing else constructs a client or a backend; one of each kind per process.
"""

from contextlib import AsyncExitStack
from pathlib import Path

import aioboto3
from pydantic import SecretStr

from storage_proxy.bus.embedded import EmbeddedOptions, open_embedded_bus
from storage_proxy.bus.kafka import open_kafka_bus
from storage_proxy.bus.kafka_options import KafkaOptions
from storage_proxy.bus.observer import BusObserver
from storage_proxy.bus.port import EventBus
from storage_proxy.common.byte_budget import ByteBudget
from storage_proxy.common.errors import BusUnavailable, ServiceError, StateUnavailable
from storage_proxy.settings import EmbeddedBusSettings, ProxySettings, S3BucketSettings, SqliteStateSettings
from storage_proxy.state.fdb_client import FdbOptions
from storage_proxy.state.fdb_engine import open_foundationdb
from storage_proxy.state.port import KeyValueStore
from storage_proxy.state.records import Records
from storage_proxy.state.sqlite import SqliteOptions, open_sqlite
from storage_proxy.stores.buckets import Buckets
from storage_proxy.stores.buffers import BufferPool
from storage_proxy.stores.local import LocalBlobStore
from storage_proxy.stores.port import BlobStore
from storage_proxy.stores.s3 import S3Options, open_s3_store


async def open_state(settings: ProxySettings, stack: AsyncExitStack) -> tuple[KeyValueStore, Records]:
    """The state store, and the keys in it. Raises `StateUnavailable` where it can never be opened as configured."""
    state = settings.state
    if isinstance(state, SqliteStateSettings):
        _make_private(state.path, StateUnavailable)
        return await stack.enter_async_context(open_sqlite(SqliteOptions(state.path))), Records()
    options = FdbOptions(state.cluster_file, api_version=state.api_version)
    return await stack.enter_async_context(open_foundationdb(options)), Records(state.prefix)


async def open_bus(settings: ProxySettings, stack: AsyncExitStack, *, observer: BusObserver | None = None) -> EventBus:
    """The event bus. Raises `BusUnavailable` where it can never be opened as configured."""
    bus = settings.bus
    if isinstance(bus, EmbeddedBusSettings):
        _make_private(bus.path, BusUnavailable)
        embedded = EmbeddedOptions(
            bus.path,
            partitions=bus.partitions,
            lease=bus.lease_seconds,
            retention=bus.retention_seconds,
            max_event_bytes=bus.max_event_bytes,
        )
        return await stack.enter_async_context(open_embedded_bus(embedded, observer=observer))
    options = KafkaOptions(
        bus.bootstrap_servers,
        security_protocol=bus.security_protocol,
        sasl_mechanism=bus.sasl_mechanism,
        sasl_username=bus.sasl_username,
        sasl_password=_revealed(bus.sasl_password),
        ssl_cafile=bus.ssl_cafile,
        ssl_certfile=bus.ssl_certfile,
        ssl_keyfile=bus.ssl_keyfile,
        topic_partitions=bus.topic_partitions,
        topic_replication=bus.topic_replication,
        request_timeout=bus.request_timeout_seconds,
        session_timeout=bus.session_timeout_seconds,
        max_event_bytes=bus.max_event_bytes,
    )
    return await stack.enter_async_context(open_kafka_bus(options, observer=observer))


async def open_buckets(
    settings: ProxySettings, stack: AsyncExitStack, budget: ByteBudget, *, only_reads: bool
) -> Buckets:
    """Every bucket of the configuration; asks none of them anything. Their readers' buffers draw on ``budget``."""
    stores: dict[str, BlobStore] = {}
    buffers = BufferPool(budget)
    session = aioboto3.Session()  # one for all buckets: each reads the model of S3 again, 200 ms
    for name, bucket in settings.buckets.items():
        if isinstance(bucket, S3BucketSettings):
            options = _s3_options(bucket, only_reads=only_reads)
            stores[name] = await stack.enter_async_context(open_s3_store(options, session=session, buffers=buffers))
        else:
            stores[name] = LocalBlobStore(bucket.root, buffers=buffers)
            stack.push_async_callback(stores[name].aclose)
    return Buckets(stores)


def _s3_options(bucket: S3BucketSettings, *, only_reads: bool) -> S3Options:
    access_key, secret_key = bucket.access_key, bucket.secret_key
    if only_reads and bucket.reader_access_key is not None:
        access_key, secret_key = bucket.reader_access_key, bucket.reader_secret_key
    return S3Options(
        bucket=bucket.bucket,
        endpoint=bucket.endpoint,
        public_endpoint=bucket.public_endpoint,
        prefix=bucket.prefix,
        region=bucket.region,
        access_key=_revealed(access_key),
        secret_key=_revealed(secret_key),
        addressing=bucket.addressing,
        max_connections=bucket.max_connections,
        connect_timeout=bucket.connect_timeout_seconds,
        read_timeout=bucket.read_timeout_seconds,
        request_timeout=bucket.request_timeout_seconds,
        max_attempts=bucket.max_attempts,
    )


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _make_private(path: Path, failure: type[ServiceError]) -> None:
    """Make an empty file where there is none, and its directories: it will hold the names of all blobs."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.touch(mode=0o600)
    except OSError as error:
        raise failure(f"The file {path} cannot be made: {error.strerror}") from error
