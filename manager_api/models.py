"""What callers of the manager API send and get."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from storage_proxy.common.tokens import ArchiveFormat, Disposition
from storage_proxy.common.values import Timestamp
from storage_proxy.common.wire import (
    RUN_ID_PATTERN,
    ArchiveSelection,
    BlobAddress,
    RunId,
    SkippedBlobs,
    UploadTarget,
    Via,
    Wire,
)

UPLOAD_ID_PATTERN = RUN_ID_PATTERN.removesuffix("$") + "~[0-9a-f]{32}$"
WholeNumber = Annotated[int, Field(strict=True)]

_EXAMPLE_BLOB: JsonDict = {"bucket": "default", "key": "reports/2024.pdf", "filename": "report.pdf", "expires_in": 600}
_EXAMPLE_ARCHIVE: JsonDict = {
    "bucket": "default",
    "entries": [{"key": "reports/2024.pdf"}, {"key": "raw/1.bin", "name": "measurements/1.bin"}],
    "filename": "reports.zip",
}
_EXAMPLE_UPLOAD: JsonDict = {"run_id": "run-42", "path": "results/table.csv", "content_type": "text/csv"}


class Nothing(Wire):
    """No field at all: whatever is given is refused."""


class MintOptions(Wire):
    """What every mint may say about its link."""

    filename: str | None = Field(
        default=None, description="The file name for whoever downloads: 1 to 255 characters, no slash."
    )
    expires_in: WholeNumber | None = Field(default=None, description="Seconds that the link lives.")
    max_downloads: WholeNumber | None = Field(default=None, description="Not enforced yet, so refused.")
    allowed_networks: list[str] | None = Field(default=None, description="Not enforced yet, so refused.")
    subject: Annotated[str, Field(min_length=1, max_length=255)] | None = Field(
        default=None, description="For whom the link is: the token's sub."
    )


class MintBlob(MintOptions, BlobAddress):
    """A link to one blob."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE_BLOB]})

    disposition: Disposition = Field(
        default=Disposition.ATTACHMENT, description="Whether a browser saves the blob or shows it."
    )


class MintArchive(MintOptions, ArchiveSelection):
    """A link to many blobs as one archive: exactly one of entries, prefix and run_id selects them."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE_ARCHIVE]})

    def selection(self) -> ArchiveSelection:
        """What the proxy is asked to plan."""
        return ArchiveSelection.model_construct(**{name: getattr(self, name) for name in ArchiveSelection.model_fields})


class MintedLink(Wire):
    """A link, ready to be given away."""

    token: str
    url: str = Field(description="The link.")
    jti: str = Field(description="The token's id.")
    expires_at: Timestamp


class MintedBlob(MintedLink):
    """A link to one blob, and the blob as it is now."""

    bucket: str
    key: str
    filename: str
    size: int = Field(description="Bytes.")
    etag: str = Field(description="With its quotes.")
    content_type: str


class MintedArchive(MintedLink):
    """A link to an archive whose every byte is decided, unless it is deflated."""

    filename: str
    format: ArchiveFormat
    entries: int = Field(description="Entries of the archive, folders and MISSING.txt included.")
    size: int | None = Field(description="Exact bytes of the archive, null where only the end will tell.")
    etag: str | None = Field(description="The archive's ETag: strong, or weak where its size is null.")
    resumable: bool = Field(description="Whether a Range is answered now.")
    skipped: SkippedBlobs = Field(description="What was asked for and is not in the archive.")


class StartUpload(UploadTarget):
    """A blob of a run that is going to be uploaded."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE_UPLOAD]})

    expires_in: WholeNumber | None = Field(default=None, description="Seconds that the URL lives.")
    via: Via | None = Field(
        default=None,
        description="`direct`: to the storage, where the bucket can; `proxy`: to the storage proxy. "
        "Default: direct where it is possible.",
    )


class StartedUpload(Wire):
    """Where an upload is to be sent: one request with this method, this URL and all of these headers."""

    upload_id: str = Field(description="What completes the upload.")
    method: Literal["PUT"] = "PUT"
    url: str = Field(description="For one body: whoever has it may upload the blob.")
    headers: dict[str, str] = Field(description="To be sent, every one of them.")
    key: str = Field(description="The blob's key within the bucket.")
    expires_at: Timestamp


class UploadPath(Wire):
    """Which upload."""

    upload_id: Annotated[str, Field(pattern=UPLOAD_ID_PATTERN, description="As its start answered.")]


class RunPath(Wire):
    """Which run."""

    run_id: RunId
