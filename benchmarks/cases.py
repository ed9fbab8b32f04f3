"""What is downloaded: the cases, as numbers only."""

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True)
class Case:
    """``count`` blobs of ``blob_bytes`` each under ``prefix``: one is downloaded as it is, more as an archive."""

    name: str
    title: str
    scale: str
    count: int
    blob_bytes: int

    @property
    def prefix(self) -> str:
        return f"{self.scale}/{self.name}/"

    @property
    def keys(self) -> list[str]:
        return [f"{self.prefix}{number:06}.bin" for number in range(self.count)]

    @property
    def payload_bytes(self) -> int:
        return self.count * self.blob_bytes

    @property
    def is_archive(self) -> bool:
        return self.count > 1


FULL = (
    Case("blob", "blob of 1 GiB", "full", 1, GIB),
    Case("large", "archive, 64 x 16 MiB", "full", 64, 16 * MIB),
    Case("small", "archive, 5,000 x 10 KiB", "full", 5000, 10 * KIB),
)
SMALL = (
    Case("blob", "blob of 64 MiB", "quick", 1, 64 * MIB),
    Case("large", "archive, 8 x 8 MiB", "quick", 8, 8 * MIB),
    Case("small", "archive, 300 x 10 KiB", "quick", 300, 10 * KIB),
)
