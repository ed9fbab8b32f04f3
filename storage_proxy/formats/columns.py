"""Columns of an entry block: numbers in arrays, texts in one bytes object. The law: little-endian outside,
whatever the machine's order is inside.
"""

import sys
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Self


class TextColumn:
    """Texts as one bytes object and the offsets of their beginnings (one more than there are texts)."""

    __slots__ = ("offsets", "text")

    def __init__(self, lengths: Sequence[int], text: bytes) -> None:
        """Raises ValueError when the lengths do not add up to the text."""
        self.offsets: array[int] = array("I", accumulate(lengths, initial=0))
        self.text = text
        if self.offsets[-1] != len(text):
            raise ValueError("an entry block's text lengths do not add up")

    @classmethod
    def of(cls, texts: Sequence[bytes]) -> Self:
        return cls([len(text) for text in texts], b"".join(texts))

    def __getitem__(self, row: int) -> bytes:
        return self.text[self.offsets[row] : self.offsets[row + 1]]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def nbytes(self) -> int:
        return sys.getsizeof(self) + sys.getsizeof(self.offsets) + sys.getsizeof(self.text)

    def lengths(self) -> Iterator[int]:
        return (stop - start for start, stop in pairwise(self.offsets))


class ColumnReader:
    """Takes columns off an encoding, from ``position`` on; its length must have been checked."""

    __slots__ = ("_encoded", "_position")

    def __init__(self, encoded: bytes, position: int) -> None:
        self._encoded = encoded
        self._position = position

    def take(self, length: int) -> bytes:
        start = self._position
        self._position = start + length
        return self._encoded[start : self._position]

    def column(self, typecode: str, rows: int) -> "array[int]":
        column: array[int] = array(typecode)
        column.frombytes(self.take(rows * column.itemsize))
        if sys.byteorder == "big":
            column.byteswap()
        return column


def little_endian(column: "array[int]") -> bytes:
    """The column's numbers in its item size, little-endian."""
    if sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    return column.tobytes()
