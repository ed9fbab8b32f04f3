"""The CRC-32 of a whole object from what S3 says about checksums: exact, or not at all.

Type FULL_OBJECT is zip's CRC-32 itself. Type COMPOSITE is a checksum of the parts' checksums, of no use here, but
GetObjectAttributes gives those of the parts, and they combine (S3 user guide, "Checking object integrity").
"""

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from storage_proxy.formats.crc32 import combine

if TYPE_CHECKING:
    from types_aiobotocore_s3.client import S3Client
    from types_aiobotocore_s3.type_defs import ObjectPartTypeDef

_MANY_PARTS = re.compile(r"-\d+\"?$")
_LACKING = frozenset({400, 403, 405, 501})


class ObjectChecksums:
    """Reads CRC-32s, and remembers whether the server has GetObjectAttributes(ObjectParts)."""

    def __init__(self, client: "S3Client", bucket: str) -> None:
        self._client = client
        self._bucket = bucket
        self._tells_parts = True

    async def crc32(self, name: str, headers: Mapping[str, str]) -> int | None:
        """The CRC-32 of the version that ``headers``, of an answer to HeadObject, describe; None where S3 is silent.

        Raises what the client library raises, except for a server's refusal to tell of parts.
        """
        size, etag = int(headers["content-length"]), headers["etag"]
        if size == 0:
            return 0
        value, kind = headers.get("x-amz-checksum-crc32"), headers.get("x-amz-checksum-type")
        if value is None:
            return None
        of_parts = bool(_MANY_PARTS.search(value)) or (kind is None and bool(_MANY_PARTS.search(etag)))
        if kind in {None, "FULL_OBJECT"} and not of_parts:
            # versitygw's CopyObject onto itself reports 0 for any content; one object in 2**32 has it rightly.
            return _decode(value) or None
        if not self._tells_parts:
            return None
        parts = await self._parts(name, etag)
        return _combined(parts, size)

    async def _parts(self, name: str, etag: str) -> "list[ObjectPartTypeDef]":
        """All parts of the version ``etag``, in order; none when the server does not say."""
        parts: list[ObjectPartTypeDef] = []
        marker = 0
        while True:
            try:
                answer = await self._client.get_object_attributes(
                    Bucket=self._bucket,
                    Key=name,
                    ObjectAttributes=["ETag", "ObjectParts"],
                    MaxParts=1000,
                    PartNumberMarker=marker,
                )
            except ClientError as error:
                status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
                if status in _LACKING:
                    self._tells_parts = False
                elif status != 404:  # deleted since
                    raise
                return []
            told = answer.get("ObjectParts", {})
            if not told.get("Parts"):
                self._tells_parts = self._tells_parts and bool(parts)
                return []
            if answer.get("ETag", etag).strip('"') != etag.strip('"'):
                return []
            parts.extend(told["Parts"])
            if not told.get("IsTruncated"):
                return parts
            following = int(told.get("NextPartNumberMarker", 0))
            if following <= marker:
                return []
            marker = following


def _combined(parts: "Iterable[ObjectPartTypeDef]", size: int) -> int | None:
    crc = total = 0
    for part in parts:
        part_crc, part_size = _decode(part.get("ChecksumCRC32", "")), part.get("Size")
        if part_crc is None or part_size is None:
            return None
        crc = combine(crc, part_crc, part_size)
        total += part_size
    return crc if total == size else None


def _decode(value: str) -> int | None:
    """The number in ``value``: base64 of four bytes, the highest first."""
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return None
    return int.from_bytes(raw, "big") if len(raw) == 4 else None
