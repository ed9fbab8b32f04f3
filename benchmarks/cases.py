"""What is downloaded: the cases, as numbers only."""

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True)
class Case:
    """``count`` blobs of ``blob_bytes`` each under ``prefix``: one is downloaded as it is, more as an archive.

    ``folder`` is the one that holds the blobs, where another case's are taken; ``part`` is a smaller case for servers
    that would take minutes.
    """

    name: str
    title: str
    scale: str
    count: int
    blob_bytes: int
    folder: str = ""
    has_crcs: bool = True
    """Whether the S3 server knows the blobs' CRC-32s. Where not, each download is of blobs never seen before."""
    format: str = "zip"
    compression: str = "store"
    origin_ms: int = 0
    """How much later than otherwise the S3 server's answer begins, in milliseconds."""
    only_ours: bool = False
    part: "Case | None" = None

    @property
    def prefix(self) -> str:
        return f"{self.scale}/{self.folder or self.name}/"

    @property
    def keys(self) -> list[str]:
        return [f"{self.prefix}{number:06}.bin" for number in range(self.count)]

    @property
    def payload_bytes(self) -> int:
        return self.count * self.blob_bytes

    @property
    def is_archive(self) -> bool:
        return self.count > 1


def _cases(
    scale: str, *, whole_mib: int, large: tuple[int, int], small: int, part: int, deflate: int
) -> tuple[Case, ...]:
    count, mib = large
    files = f"archive, {count} x {mib} MiB"
    small_files = f"archive, {small:,} x 10 KiB"
    blob = Case("blob", f"blob of {whole_mib:,} MiB", scale, 1, whole_mib * MIB)
    subset = Case("part", f"archive, {part:,} x 10 KiB", scale, part, 10 * KIB)
    return (
        blob,
        Case("large", files, scale, count, mib * MIB),
        Case("unknown", f"{files}, CRC-32s unknown", scale, count, mib * MIB, has_crcs=False, only_ours=True),
        Case("tar", f"{files}, tar", scale, count, mib * MIB, folder="large", format="tar", only_ours=True),
        Case(
            "deflate",
            f"archive, {deflate} x {mib} MiB, deflate",
            scale,
            deflate,
            mib * MIB,
            compression="deflate",
            only_ours=True,
        ),
        Case("small", small_files, scale, small, 10 * KIB),
        Case(
            "latency",
            f"{small_files}, S3 20 ms away (obvious: {part:,} of them)",
            scale,
            small,
            10 * KIB,
            folder="small",
            origin_ms=20,
            part=subset,
        ),
    )


FULL = _cases("full", whole_mib=1024, large=(64, 16), small=5000, part=500, deflate=8)
SMALL = _cases("quick", whole_mib=64, large=(8, 8), small=300, part=50, deflate=2)
