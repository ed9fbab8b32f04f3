"""How uploads are taken and announced blobs are verified: every figure, with its unit."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class IngestOptions:
    """Times are in seconds.

    ``parallel_requests`` bounds the HEADs under way, ``parallel_reads`` the blobs being read to learn their CRC-32,
    each of at most ``crc32_read_bytes``. A blob that was announced by message alone may arrive for
    ``pending_seconds``; it is looked at again after a time that doubles from ``first_look_seconds`` to
    ``max_look_seconds``. An upload that was prepared here may arrive until ``upload_margin_seconds`` after the end of
    its URL: clocks differ, and a body that was begun in time takes its time.
    """

    max_upload_bytes: int = 5_368_709_120
    parallel_requests: int = 64
    parallel_reads: int = 8
    crc32_read_bytes: int = 64 << 20
    pending_seconds: float = 86_400.0
    first_look_seconds: float = 1.0
    max_look_seconds: float = 60.0
    upload_margin_seconds: float = 300.0
    claim_wait_seconds: float = 2.0
    """A request for a key that is being cleaned up waits for so long before it is `Busy`."""
