"""A cache bounded by the bytes that its values hold, least recently used out first."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """Knows how many bytes of memory it holds, roughly."""

    @property
    def nbytes(self) -> int: ...


_Value = TypeVar("_Value", bound=Sized)


class BytesBoundedCache(Generic[_Value]):
    """At most ``max_bytes`` of values; a single one that is larger is not kept."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._values: OrderedDict[Hashable, _Value] = OrderedDict()
        self.nbytes = 0
        self.hits = 0
        self.misses = 0

    def get(self, key: Hashable) -> _Value | None:
        """The value, now the most recently used; None when it is not here."""
        value = self._values.get(key)
        if value is None:
            self.misses += 1
            return None
        self.hits += 1
        self._values.move_to_end(key)
        return value

    def clear(self) -> None:
        """Let go of everything."""
        self._values.clear()
        self.nbytes = 0

    def put(self, key: Hashable, value: _Value) -> None:
        """Keep ``value``, and let go of others until the bound holds."""
        if value.nbytes > self._max_bytes:
            return
        if (old := self._values.pop(key, None)) is not None:
            self.nbytes -= old.nbytes
        self._values[key] = value
        self.nbytes += value.nbytes
        while self.nbytes > self._max_bytes:
            _, gone = self._values.popitem(last=False)
            self.nbytes -= gone.nbytes
