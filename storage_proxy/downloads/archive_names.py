"""The names of an archive's entries: each made safe, and no two the same to any file system.

The law: the same entries in the same order get the same names. Compared after NFC and case folding, the later of two
equal names is renamed; between a file and a folder of one name, the file. A name is remembered by a digest, so a
million of them take about 90 bytes each, however long they are.
"""

from collections.abc import Callable
from hashlib import blake2b

from storage_proxy.common.errors import DuplicateName
from storage_proxy.common.names import folded, numbered

_WIDEST_NUMBER = 9_999_999
_SHARDS = 64


class ArchiveNames:
    """Assigns names in the entries' order, once ``note_folders`` has seen every wanted name."""

    def __init__(self, *, rename: bool) -> None:
        """``rename`` tells duplicates apart by a number; without it they raise `DuplicateName`."""
        self._rename = rename
        self._folders = _Marks()
        self._taken = _Marks()
        self._next_number: dict[int, int] = {}
        self._mark_parent = _remembering(_mark)

    def note_folders(self, name: str) -> None:
        """Remember the folders that an entry of this name implies, and is."""
        path = name.removesuffix("/") if name.endswith("/") else name.rpartition("/")[0]
        while path:
            mark = self._mark_parent(path)
            if mark in self._folders:
                return
            self._folders.add(mark)
            path = path.rpartition("/")[0]

    def assign(self, wanted: str, *, rename: bool = False) -> str:
        """The entry's name; ``rename`` even where duplicates are refused. Raises `DuplicateName`."""
        if self._take(wanted):
            return wanted
        if not (rename or self._rename):
            raise DuplicateName(errors=[{"loc": ["entries"], "msg": f"two entries are named {wanted}"}])
        mark = _mark(numbered(wanted, _WIDEST_NUMBER))  # the same for long names that are the same once cut
        number = self._next_number.get(mark, 2)
        while not self._take(name := numbered(wanted, number)):
            number += 1
        self._next_number[mark] = number + 1
        return name

    def _take(self, name: str) -> bool:
        mark = _mark(name.removesuffix("/"))
        is_file = not name.endswith("/")
        if mark in self._taken or (is_file and mark in self._folders):
            return False
        self._taken.add(mark)
        return True


class _Marks:
    """A set of marks that can be a million without a pause of tens of milliseconds.

    It is in shards, so that only a small table grows at a time; they are dicts, because the garbage collector looks
    through every member of a set, again and again, and leaves a dict of plain numbers alone.
    """

    def __init__(self) -> None:
        self._shards: tuple[dict[int, None], ...] = tuple({} for _ in range(_SHARDS))

    def __contains__(self, mark: int) -> bool:
        return mark in self._shards[mark % _SHARDS]

    def add(self, mark: int) -> None:
        self._shards[mark % _SHARDS][mark] = None


def _mark(name: str) -> int:
    """The same for names that are one file to some file system, else another: 128 bits of a digest."""
    return int.from_bytes(blake2b(folded(name).encode(), digest_size=16).digest())


def _remembering(mark: Callable[[str], int]) -> Callable[[str], int]:
    """``mark`` with the last answer at hand: neighbours in a listing share their folder."""
    last = ("", mark(""))

    def remembered(text: str) -> int:
        nonlocal last
        if text != last[0]:
            last = (text, mark(text))
        return last[1]

    return remembered
