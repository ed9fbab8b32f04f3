"""What the two programs say to each other, and what the manager passes on: typed requests and answers.

The law: unknown fields are refused; a value is written one way everywhere (see `values`).
"""

from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.dataclasses import dataclass

from storage_proxy.common.large_json import READ_IN_TURNS, WRITTEN_IN_TURNS
from storage_proxy.common.tokens import ArchiveFormat, Compression, OnMissing, Sha256Name
from storage_proxy.common.values import ContentType, Crc32Hex, Timestamp

DEFAULT_BUCKET = "default"
MAX_RPC_BODY_BYTES = 32 << 20
"""Room for 100,000 entries of ordinary length."""


class Wire(BaseModel):
    """A request or an answer."""

    # Any constraint makes Pydantic look at a text: without one a lone surrogate passes, and fails where it is encoded.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, str_min_length=0)


class OnDuplicate(StrEnum):
    RENAME = "rename"
    FAIL = "fail"


class Names(StrEnum):
    PORTABLE = "portable"
    EXACT = "exact"


BucketName = Annotated[str, Field(max_length=64, description="A bucket of the configuration.")]
BlobKey = Annotated[str, Field(description="The blob's key within the bucket.")]


class BlobAddress(Wire):
    """Which blob."""

    bucket: BucketName = DEFAULT_BUCKET
    key: BlobKey


class BlobDescription(Wire):
    """One blob as it is now."""

    bucket: str
    key: str
    size: int = Field(description="Bytes.")
    etag: str = Field(description="With its quotes.")
    last_modified: Timestamp
    content_type: str
    crc32: Crc32Hex | None = Field(description="CRC-32 of the content, null where the storage does not know it.")


RUN_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
RunId = Annotated[str, Field(pattern=RUN_ID_PATTERN, description="The run.")]
BlobPath = Annotated[str, Field(description="The blob's path within its run: a safe name.")]
Size = Annotated[int, Field(strict=True, ge=0, lt=2**63, description="Bytes.")]


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid", hide_input_in_errors=True, str_min_length=0))
class SelectedBlob:
    """One blob of an archive; ``name`` is its name there, by default its key."""

    key: str
    name: str | None = None
    bucket: str | None = None


class ArchiveSelection(Wire):
    """What goes into an archive, and how: exactly one of ``entries``, ``prefix`` and ``run_id`` selects."""

    bucket: BucketName = DEFAULT_BUCKET
    entries: Annotated[list[Annotated[SelectedBlob, READ_IN_TURNS]], Field(min_length=1, fail_fast=True)] | None = (
        Field(default=None, description="These blobs. An entry's name is by default its key, its bucket the one above.")
    )
    prefix: str | None = Field(default=None, description="Every blob under it: empty, or ends in /.")
    run_id: RunId | None = Field(default=None, description="Every verified blob of the run.")
    format: ArchiveFormat = Field(default=ArchiveFormat.ZIP, description="A tar is always resumable.")
    compression: Compression = Field(
        default=Compression.STORE,
        description="`deflate`, for zip only: the archive's length is not known, and it cannot be resumed.",
    )
    on_missing: OnMissing = Field(
        default=OnMissing.FAIL,
        description="A missing blob refuses the archive, or is left out and listed in MISSING.txt.",
    )
    on_duplicate: OnDuplicate = Field(
        default=OnDuplicate.RENAME, description="A second entry of one name becomes `name (2).ext`, or is refused."
    )
    names: Names = Field(default=Names.PORTABLE, description="Whether names are changed to what Windows can store.")

    @model_validator(mode="after")
    def _selects_one_way(self) -> Self:
        if sum(way is not None for way in (self.entries, self.prefix, self.run_id)) != 1:
            raise ValueError("exactly one of entries, prefix and run_id is required")
        return self

    @field_validator("prefix")
    @classmethod
    def _prefix_is_a_folder(cls, prefix: str | None) -> str | None:
        if prefix and not prefix.endswith("/"):
            raise ValueError("must be empty or end in /")
        return prefix

    @field_validator("compression")
    @classmethod
    def _tar_is_stored(cls, compression: Compression, others: ValidationInfo) -> Compression:
        if compression is Compression.DEFLATE and others.data.get("format") is ArchiveFormat.TAR:
            raise ValueError("tar cannot be combined with deflate")
        return compression


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid", hide_input_in_errors=True, str_min_length=0))
class SkippedBlob:
    """A blob that was asked for and is not in the archive."""

    key: str
    reason: str


SkippedBlobs = list[Annotated[SkippedBlob, READ_IN_TURNS, WRITTEN_IN_TURNS]]


class PlannedArchive(Wire):
    """An archive whose every byte is decided: what its manifest pins."""

    manifest: Sha256Name
    entries: int = Field(description="Entries of the archive, folders and MISSING.txt included.")
    size: int | None = Field(description="Exact bytes of the archive, null where only the end will tell.")
    etag: str | None = Field(description="The archive's ETag: strong, or weak where its size is null.")
    resumable: bool = Field(description="Whether a Range is answered now.")
    skipped: SkippedBlobs


class Via(StrEnum):
    """How an upload reaches its bucket."""

    DIRECT = "direct"  # to the store's presigned URL
    PROXY = "proxy"  # to the client listener


class UploadTarget(Wire):
    """Which blob of which run is uploaded, and what is known of it before."""

    run_id: RunId
    path: BlobPath
    bucket: BucketName = DEFAULT_BUCKET
    content_type: ContentType | None = Field(default=None, description="The content's media type.")
    size: Size | None = Field(default=None, description="Bytes of the content.")
    crc32: Crc32Hex | None = Field(default=None, description="CRC-32 of the content, 8 lower-case hex digits.")


class UploadOrder(UploadTarget):
    """An upload to prepare. ``via`` absent: direct where the bucket can, else by the proxy."""

    via: Via | None = None
    expires_in: Annotated[int, Field(strict=True, ge=1)] = Field(description="Seconds.")


class PreparedUpload(Wire):
    """An upload that is announced: where to send it. Through the proxy ``url`` is null: the manager signs a token."""

    upload_id: str
    bucket: str
    key: str
    url: str | None
    headers: dict[str, str]
    expires_at: Timestamp


class RunAccess(Wire):
    """Whose run may be seen: ``buckets`` are those of the API key, separated by commas; absent: all."""

    buckets: str | None = None

    def allows(self, bucket: str | None) -> bool:
        """Whether a run of ``bucket`` may be seen; one that has none may."""
        return self.names is None or bucket is None or bucket in self.names

    @property
    def names(self) -> list[str] | None:
        """The buckets that may be seen; None for all."""
        return None if self.buckets is None else self.buckets.split(",")


class PlanRequest(ArchiveSelection, RunAccess):
    """A selection, for an API key: a run that it may not see does not exist."""


class BlobStateFilter(StrEnum):
    """Which of a run's blobs are listed."""

    VERIFIED = "verified"
    PENDING = "pending"
    REJECTED = "rejected"
    EXPIRED = "expired"
    ALL = "all"


class RunBlobsPage(Wire):
    """Which page of a run's blobs."""

    state: BlobStateFilter = Field(default=BlobStateFilter.VERIFIED, description="Only blobs of this state.")
    limit: Annotated[int, Field(ge=1, le=1000)] = Field(default=1000, description="Blobs of a page, at most.")
    cursor: Annotated[str, Field(max_length=4096, pattern=r"^[!-~]+$")] | None = Field(
        default=None, description="`next_cursor` of the page before."
    )
    uris: bool = Field(default=False, description="Whether each verified blob comes with an encrypted URI.")


class RunBlobsQuery(RunBlobsPage, RunAccess):
    """A page, for an API key."""


class RunBlob(Wire):
    """One blob of a run. What is announced and not verified yet has null where only the object can tell."""

    path: str
    key: str
    bucket: str
    size: int | None = Field(description="Bytes.")
    etag: str | None = Field(description="With its quotes.")
    crc32: Crc32Hex | None = Field(description="CRC-32 of the content, null where it is not known.")
    content_type: str | None
    state: str = Field(description="`verified`, `pending`, `rejected` or `expired`.")
    created_at: Timestamp
    attributes: dict[str, Any] = Field(description="As its producer announced them.")
    uri: str | None = Field(
        default=None,
        exclude_if=lambda uri: uri is None,
        description="Encrypted, for /blob-batch; absent unless it was asked for.",
    )


class RunBlobs(Wire):
    """A page of a run's blobs, in byte order of their paths."""

    blobs: list[RunBlob]
    next_cursor: str | None


class RunDescription(Wire):
    """A run: how many verified blobs it has, and whether it is being deleted."""

    run_id: str
    bucket: str | None = Field(description="Where its blobs are, null when it never had one.")
    state: str = Field(description="`active`, `deleting` or `deleted`.")
    blobs: int = Field(description="Verified blobs.")
    bytes: int = Field(description="Bytes of these.")
