"""What S3's answers say of a blob, and whether they answer the question. The law: what contradicts it is an error.

Names here are those of objects: the bucket's prefix and the key.
"""

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from storage_proxy.common.errors import BlobChanged, StorageError
from storage_proxy.stores.port import BlobStat, whole_seconds
from storage_proxy.stores.s3_listing_xml import ListedObject

MAX_NAME_BYTES = 1024
"""The longest name of an object (S3 user guide, "Naming Amazon S3 objects")."""

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)", re.ASCII)


def object_name(prefix: str, key: str) -> str | None:
    """The object's name, None when S3 cannot hold it: names are UTF-8 without NUL, of 1 to 1,024 bytes."""
    name = prefix + key
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return None
    return name if key and size <= MAX_NAME_BYTES and "\0" not in name else None


def may_be_alias(name: str) -> bool:
    """Whether a server that maps names to paths could take it for another name."""
    return any(part in {"", ".", ".."} for part in name.removesuffix("/").split("/"))


def longest_name(order: bytes) -> str:
    """The longest name that sorts no later than ``order`` and is the beginning of it."""
    try:
        return order[:MAX_NAME_BYTES].decode()
    except UnicodeDecodeError as error:
        return order[: error.start].decode()


def quoted(etag: str) -> str:
    """``etag`` with its quotes, which some servers leave out; empty where it says nothing."""
    if etag in {"", '""'}:
        return ""
    return etag if etag.startswith('"') else f'"{etag}"'


def stat_of_head(key: str, headers: Mapping[str, str], crc32: int | None) -> BlobStat:
    """From the ``headers`` of an answer to HeadObject; raises `KeyError` and `ValueError` where they make no sense."""
    if not (etag := quoted(headers.get("etag", ""))):
        raise StorageError("The storage gives the object no ETag: its versions cannot be told from each other")
    # Some servers keep the encoding that an upload had only on its way.
    encodings = [part.strip() for part in headers.get("content-encoding", "").split(",")]
    return BlobStat(
        key=key,
        size=int(headers["content-length"]),
        etag=etag,
        last_modified=whole_seconds(parsedate_to_datetime(headers["last-modified"]).timestamp()),
        content_type=headers.get("content-type") or None,
        content_encoding=",".join(part for part in encodings if part not in {"", "aws-chunked"}) or None,
        crc32=crc32,
    )


def stat_of_listed(key: str, item: ListedObject) -> BlobStat:
    return BlobStat(key=key, size=item.size, etag=quoted(item.etag), last_modified=item.last_modified)


def check_range(status: int, headers: Mapping[str, str], start: int, stop: int, if_match: str | None) -> None:
    """Whether the body is ``start`` to ``stop`` of the version ``if_match`` (RFC 9110 sections 14.4 and 15.3.7).

    Raises `BlobChanged` for another version and for a blob that ends before ``stop``, else `StorageError`.
    """
    if if_match is not None and quoted(headers.get("etag", "")) != if_match:
        raise BlobChanged
    length = headers.get("content-length")  # absent when the body is chunked; the reader counts anyway
    if status == 206:
        found = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
        if found is None:
            raise StorageError("The storage did not say which range it sends")
        first, last, total = map(int, found.groups())
        if first == start and last + 1 == total < stop:
            raise BlobChanged
        if (first, last) != (start, stop - 1) or total < stop:
            raise StorageError("The storage sends another range than was asked for")
    elif start > 0 or length is None or int(length) > stop:
        raise StorageError("The storage ignored the range")
    elif int(length) < stop:
        raise BlobChanged
    if length is not None and int(length) != stop - start:
        raise StorageError("The storage sends another number of bytes than was asked for")
