"""The proxy's configuration: every key, its default and what it means."""

import base64
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from cryptography.fernet import Fernet
from pydantic import AfterValidator, Field, SecretStr, StringConstraints, model_validator
from pydantic_settings import SettingsConfigDict

from storage_proxy.common.events import RUNS_PREFIX
from storage_proxy.common.service.settings import (
    DEVELOPMENT_MARK,
    BaseUrl,
    GuardedSecret,
    ListenAddress,
    Section,
    ServiceSettings,
)
from storage_proxy.common.service.token_settings import TokenSettings

BucketName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+$")]


def _fernet_key(secret: SecretStr) -> SecretStr:
    try:
        Fernet(secret.get_secret_value())
    except ValueError:
        raise ValueError("must be 32 bytes in URL-safe base64, as `Fernet.generate_key` makes them") from None
    return secret


FernetKey = Annotated[SecretStr, AfterValidator(_fernet_key)]
TopicName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,200}$")]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Count = Annotated[int, Field(ge=1)]


class ClientSettings(Section):
    """The client listener."""

    listen: ListenAddress = "127.0.0.1:6021"
    public_url: BaseUrl = "http://127.0.0.1:6021"
    stall_seconds: Seconds = 60.0
    """A client that takes nothing for so long is cut."""


class RpcSettings(Section):
    """The RPC listener: private network, shared secret."""

    listen: ListenAddress = "127.0.0.1:6022"
    secrets: Annotated[list[GuardedSecret], Field(min_length=1)]


class OperationsSettings(Section):
    """Health and metrics, without a secret."""

    listen: ListenAddress = "127.0.0.1:6023"


class ProxyTokenSettings(TokenSettings):
    """Which tokens are believed."""

    resume_grace_seconds: Annotated[int, Field(ge=0)] = 3600


class LocalBucketSettings(Section):
    """A directory."""

    kind: Literal["local"]
    root: Path


class S3BucketSettings(Section):
    """A bucket of an S3 server. Times are in seconds."""

    kind: Literal["s3"]
    bucket: Annotated[str, Field(min_length=1)]
    endpoint: BaseUrl | None = None
    public_endpoint: BaseUrl | None = None
    prefix: str = ""
    region: str = "us-east-1"
    access_key: SecretStr | None = None
    secret_key: SecretStr | None = None
    reader_access_key: SecretStr | None = None
    reader_secret_key: SecretStr | None = None
    delivery: Literal["proxy", "redirect"] = "proxy"
    addressing: Literal["path", "virtual", "auto"] = "auto"
    max_connections: Annotated[int, Field(ge=8)] = 1280
    """A download may have one open, and a few more ahead."""
    connect_timeout_seconds: Seconds = 3.0
    read_timeout_seconds: Seconds = 20.0
    request_timeout_seconds: Seconds = 30.0
    max_attempts: Count = 3

    @model_validator(mode="after")
    def _keys_come_in_pairs(self) -> Self:
        if (self.access_key is None) != (self.secret_key is None):
            raise ValueError("access_key and secret_key belong together")
        if (self.reader_access_key is None) != (self.reader_secret_key is None):
            raise ValueError("reader_access_key and reader_secret_key belong together")
        return self


BucketSettings = Annotated[LocalBucketSettings | S3BucketSettings, Field(discriminator="kind")]


class ManifestSettings(Section):
    """Where manifests are kept; by default in the bucket named default, else in the first."""

    bucket: BucketName | None = None


class SqliteStateSettings(Section):
    """The state in one file, for the processes of one machine."""

    kind: Literal["sqlite"] = "sqlite"
    path: Path = Path("var/state.db")


class FdbStateSettings(Section):
    """The state in a FoundationDB cluster."""

    kind: Literal["fdb"]
    cluster_file: Path | None = None
    api_version: Count = 710
    prefix: str = "storage-proxy"


class EmbeddedBusSettings(Section):
    """A durable log in one SQLite file, for the processes of one machine. Times are in seconds."""

    kind: Literal["embedded"] = "embedded"
    path: Path = Path("var/bus.db")
    ingest_topic: TopicName = "blob-ingest"
    control_topic: TopicName = "blob-control"
    partitions: Annotated[int, Field(ge=1, le=1024)] = 8
    """Of topics that are made from now on; those that exist keep theirs."""
    lease_seconds: Annotated[float, Field(ge=1, le=3600)] = 10.0
    retention_seconds: Annotated[int, Field(ge=1)] | None = 604_800
    max_event_bytes: Annotated[int, Field(ge=16_384)] = 1 << 20


class KafkaBusSettings(Section):
    """A Kafka cluster. Times are in seconds."""

    kind: Literal["kafka"]
    bootstrap_servers: Annotated[str, Field(min_length=1)]
    ingest_topic: TopicName = "blob-ingest"
    control_topic: TopicName = "blob-control"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_cafile: Path | None = None
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    session_timeout_seconds: Annotated[float, Field(ge=6, le=1800)] = 10.0
    """Kafka's own bounds (group.min.session.timeout.ms, group.max.session.timeout.ms)."""
    request_timeout_seconds: Seconds = 10.0
    topic_partitions: Annotated[int, Field(ge=1, le=1024)] = 8
    topic_replication: Annotated[int, Field(ge=1, le=32)] | None = None
    max_event_bytes: Annotated[int, Field(ge=16_384)] = 1 << 20

    @model_validator(mode="after")
    def _sasl_has_credentials(self) -> Self:
        if self.security_protocol.startswith("SASL") and (self.sasl_username is None or self.sasl_password is None):
            raise ValueError("security_protocol SASL_* needs sasl_username and sasl_password")
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ValueError("ssl_keyfile needs ssl_certfile")
        return self


class BlobUriSettings(Section):
    """Encrypted blob URIs: the first key encrypts, all decrypt."""

    keys: tuple[FernetKey, ...] = ()
    ttl_seconds: Count = 3600


class IngestSettings(Section):
    """How announced blobs are verified. Times are in seconds."""

    group: Annotated[str, Field(min_length=1, max_length=128)] = "storage-proxy-ingest"
    parallel_requests: Annotated[int, Field(ge=1, le=1024)] = 64
    crc32_read_bytes: Annotated[int, Field(ge=0)] = 64 << 20
    """A blob whose CRC-32 nobody knows is read whole to learn it, up to this size."""
    pending_seconds: Seconds = 86_400.0
    """What was announced by message alone may arrive for so long."""
    first_look_seconds: Seconds = 1.0
    max_look_seconds: Seconds = 60.0
    """A pending blob is looked at again after a time that doubles from the first to the second."""


class LifecycleSettings(Section):
    """How runs end, and what the clean-up jobs may take. Times are in seconds."""

    group: Annotated[str, Field(min_length=1, max_length=128)] = "storage-proxy-control"
    second_pass_seconds: Annotated[float, Field(ge=0, le=604_800)] = 3600.0
    """A deleted run is swept again so long after its deletion, and after the end of its last upload URL."""
    orphan_seconds: Annotated[float, Field(ge=0)] = 86_400.0
    """Objects without a record that are younger stay."""
    tombstone_seconds: Annotated[float, Field(ge=0)] = 2_592_000.0
    """Tombstones stay for so long after their second pass; at least as long as the ingest topic keeps messages."""
    longest_token_seconds: Annotated[float, Field(ge=1)] = 604_800.0
    """How long a link may live at most: manifests that are younger stay."""
    lock_seconds: Annotated[float, Field(ge=1, le=3600)] = 30.0
    """A job that is not heard of for so long has lost its lock."""
    relay_seconds: Annotated[float, Field(gt=0, le=60)] = 0.1
    """How often the outbox is looked at when it is empty."""


class LimitSettings(Section):
    """Bounds of one process."""

    max_upload_bytes: Count = 5_368_709_120
    max_archive_entries: Annotated[int, Field(ge=1, le=1_000_000)] = 100_000
    max_concurrent_downloads: Count = 1000
    max_concurrent_downloads_per_token: Count = 16
    plan_cache_bytes: Annotated[int, Field(ge=0)] = 32 << 20
    buffer_bytes: Annotated[int, Field(ge=1 << 20)] = 128 << 20
    """What bytes on their way may take: buffers and prefetched blobs. Each download has its least beyond it."""
    deflate_threads: Annotated[int, Field(ge=1, le=256)] = 2
    """Threads that compress, for all downloads together."""


class MintSettings(Section):
    """What a mint may do to learn what it must know."""

    parallel_requests: Annotated[int, Field(ge=1, le=1024)] = 32
    crc32_read_bytes: Annotated[int, Field(ge=0)] = 1 << 30
    crc32_seconds: Annotated[float, Field(ge=0, le=600)] = 20.0


class HealSettings(Section):
    """How long a source that breaks mid-body is tried again."""

    attempts: Annotated[int, Field(ge=0)] = 20
    seconds: Annotated[float, Field(ge=0, le=3600)] = 30.0


class ShutdownSettings(Section):
    """How long running downloads may go on after SIGTERM."""

    drain_seconds: Annotated[float, Field(ge=0, le=86_400)] = 30.0
    unready_seconds: Annotated[float, Field(ge=0, le=600)] = 0.0
    """For so long after SIGTERM connections are still accepted, while readiness is already false."""


class ProxySettings(ServiceSettings):
    """Everything the storage proxy is told."""

    model_config = SettingsConfigDict(env_prefix="STORAGE_PROXY__")

    union_tags: ClassVar = {("buckets",): 2, ("state",): 1, ("bus",): 1}

    client: ClientSettings | None = None
    rpc: RpcSettings | None = None
    operations: OperationsSettings = OperationsSettings()
    tokens: ProxyTokenSettings
    buckets: Annotated[dict[BucketName, BucketSettings], Field(min_length=1)]
    manifests: ManifestSettings = ManifestSettings()
    state: Annotated[SqliteStateSettings | FdbStateSettings, Field(discriminator="kind")] = SqliteStateSettings()
    bus: Annotated[EmbeddedBusSettings | KafkaBusSettings, Field(discriminator="kind")] = EmbeddedBusSettings()
    blob_uris: BlobUriSettings = BlobUriSettings()
    ingest: IngestSettings = IngestSettings()
    lifecycle: LifecycleSettings = LifecycleSettings()
    limits: LimitSettings = LimitSettings()
    mint: MintSettings = MintSettings()
    heal: HealSettings = HealSettings()
    shutdown: ShutdownSettings = ShutdownSettings()

    @model_validator(mode="before")
    @classmethod
    def _kinds_have_defaults(cls, given: dict[str, Any]) -> dict[str, Any]:
        kinds = {"state": "sqlite", "bus": "embedded"}
        filled = {
            name: {"kind": kind, **given[name]} for name, kind in kinds.items() if isinstance(given.get(name), dict)
        }
        return {**given, **filled}

    @property
    def manifests_bucket(self) -> str:
        """The name of the bucket where manifests are kept."""
        if self.manifests.bucket is not None:
            return self.manifests.bucket
        return "default" if "default" in self.buckets else next(iter(self.buckets))

    def one_place(self) -> tuple[str, str] | None:
        """Two buckets of which one holds the other's runs: the same place by two names, or within its own runs."""
        places = [(name, *_place_of_runs(bucket)) for name, bucket in self.buckets.items()]
        for first, second in permutations(places, 2):
            if first[1] == second[1] and second[2].startswith(first[2]):
                return first[0], second[0]
        return None

    def problems(self) -> list[str]:
        found = super().problems()
        if self.environment == "production":
            found += [
                f"blob_uris.keys.{index}: is a development secret"
                for index, key in enumerate(self.blob_uris.keys)
                if DEVELOPMENT_MARK.encode() in base64.urlsafe_b64decode(key.get_secret_value())
            ]
        if self.manifests_bucket not in self.buckets:
            found.append("manifests.bucket: is not a bucket of this configuration")
        taken: set[str] = set()
        for name, section in (("client", self.client), ("rpc", self.rpc), ("operations", self.operations)):
            if section is not None and not section.listen.endswith(":0"):
                if section.listen in taken:
                    found.append(f"{name}.listen: another listener has this address")
                taken.add(section.listen)
        return found


def _place_of_runs(bucket: LocalBucketSettings | S3BucketSettings) -> tuple[str, str]:
    """Which store the bucket is in, and what the names of its runs' objects begin with there."""
    if isinstance(bucket, LocalBucketSettings):
        return "", f"{bucket.root.resolve()}/{RUNS_PREFIX}"
    return f"{bucket.endpoint or 'AWS'} {bucket.bucket}", bucket.prefix + RUNS_PREFIX
