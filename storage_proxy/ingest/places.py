"""Which blob of which run, and what it is announced to be."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from storage_proxy.common.events import BlobRefPayload, run_key
from storage_proxy.common.wire import UploadTarget
from storage_proxy.state.records import BlobRecord


class Place(NamedTuple):
    """Where a blob of a run is."""

    bucket: str
    run_id: str
    path: str

    @property
    def key(self) -> str:
        """The blob's key within the bucket."""
        return run_key(self.run_id, self.path)


@dataclass(frozen=True, slots=True)
class Announced:
    """What is said of a blob before it was looked at; None where nothing is said. ``size`` is in bytes."""

    content_type: str | None = None
    size: int | None = None
    crc32: int | None = None
    attributes: Mapping[str, Any] | None = None

    @classmethod
    def by_event(cls, payload: BlobRefPayload) -> Self:
        return cls(payload.content_type, payload.size, _crc32(payload.crc32), payload.attributes)

    @classmethod
    def by_upload(cls, target: UploadTarget) -> Self:
        return cls(target.content_type, target.size, _crc32(target.crc32))

    @classmethod
    def by_record(cls, record: BlobRecord) -> Self:
        """What was announced of a blob that is not verified."""
        return cls(record.content_type, record.size, record.crc32, record.attributes)

    def over(self, earlier: "Announced") -> "Announced":
        """This, and for what it does not say, what was said before."""
        return Announced(
            earlier.content_type if self.content_type is None else self.content_type,
            earlier.size if self.size is None else self.size,
            earlier.crc32 if self.crc32 is None else self.crc32,
            earlier.attributes if self.attributes is None else self.attributes,
        )


def _crc32(hex_digits: str | None) -> int | None:
    return None if hex_digits is None else int(hex_digits, 16)
