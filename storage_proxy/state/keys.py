"""Keys by FoundationDB's tuple layer: a tuple's byte order is its elements' order, in every language's binding.

The law: nothing else makes keys. `fdb.tuple` is pure Python and needs no native library.
"""

import struct
from typing import TypeAlias
from uuid import UUID

from fdb import tuple as tuple_layer

Element: TypeAlias = "bytes | str | int | float | bool | UUID | tuple[Element, ...] | None"


def pack(*elements: Element) -> bytes:
    packed: bytes = tuple_layer.pack(elements)
    return packed


def unpack(key: bytes) -> tuple[Element, ...]:
    """The elements of a packed key; ValueError for bytes that are none."""
    return _unpacked(key, 0)


def after(key: bytes) -> bytes:
    """The first key after ``key``: where a listing goes on, or the end of a range that includes ``key``."""
    return key + b"\x00"


def _unpacked(key: bytes, start: int) -> tuple[Element, ...]:
    try:
        elements: tuple[Element, ...] = tuple_layer.unpack(key, start)
    except (ValueError, IndexError, TypeError, struct.error) as error:  # whichever the bytes lead the layer into
        raise ValueError("The key is no packed tuple") from error
    return elements


class Subspace:
    """All keys that begin with the same elements."""

    __slots__ = ("prefix",)

    def __init__(self, *elements: Element, raw_prefix: bytes = b"") -> None:
        """``raw_prefix`` stands before the packed elements as it is."""
        self.prefix = raw_prefix + pack(*elements)

    def __repr__(self) -> str:
        return f"Subspace(raw_prefix={self.prefix!r})"

    def __contains__(self, key: bytes) -> bool:
        return key.startswith(self.prefix)

    def subspace(self, *elements: Element) -> "Subspace":
        """The keys of this subspace whose next elements are these."""
        return Subspace(*elements, raw_prefix=self.prefix)

    def pack(self, *elements: Element) -> bytes:
        return self.prefix + pack(*elements)

    def unpack(self, key: bytes) -> tuple[Element, ...]:
        """The elements of ``key`` after the prefix; ValueError for a key of another subspace."""
        if key not in self:
            raise ValueError("The key is not of this subspace")
        return _unpacked(key, len(self.prefix))

    def range(self, *elements: Element) -> tuple[bytes, bytes]:
        """``begin, end`` of all keys of this subspace whose next elements are these and which have more."""
        prefix = self.pack(*elements)
        return prefix + b"\x00", prefix + b"\xff"
