"""The names of an archive's entries: each made safe, and no two the same to any file system.

The law: the same entries in the same order get the same names. Compared after NFC and case folding, the later of two
equal names is renamed; between a file and a folder of one name, the file.
"""

from collections.abc import Callable

from storage_proxy.common.errors import DuplicateName
from storage_proxy.common.names import folded, numbered

_WIDEST_NUMBER = 9_999_999


class ArchiveNames:
    """Assigns names in the entries' order, once ``note_folders`` has seen every wanted name."""

    def __init__(self, *, rename: bool) -> None:
        """``rename`` tells duplicates apart by a number; without it they raise `DuplicateName`."""
        self._rename = rename
        self._folders: set[str] = set()
        self._taken: set[str] = set()
        self._next_number: dict[str, int] = {}
        self._fold_parent = _remembering(folded)

    def note_folders(self, name: str) -> None:
        """Remember the folders that an entry of this name implies, and is."""
        path = name.removesuffix("/") if name.endswith("/") else name.rpartition("/")[0]
        while path:
            form = self._fold_parent(path)
            if form in self._folders:
                return
            self._folders.add(form)
            path = path.rpartition("/")[0]

    def assign(self, wanted: str, *, rename: bool = False) -> str:
        """The entry's name; ``rename`` even where duplicates are refused. Raises `DuplicateName`."""
        if self._take(wanted):
            return wanted
        if not (rename or self._rename):
            raise DuplicateName(errors=[{"loc": ["entries"], "msg": f"two entries are named {wanted}"}])
        form = folded(numbered(wanted, _WIDEST_NUMBER))  # the same for long names that are the same once cut
        number = self._next_number.get(form, 2)
        while not self._take(name := numbered(wanted, number)):
            number += 1
        self._next_number[form] = number + 1
        return name

    def _take(self, name: str) -> bool:
        form = folded(name.removesuffix("/"))
        is_file = not name.endswith("/")
        if form in self._taken or (is_file and form in self._folders):
            return False
        self._taken.add(form)
        return True


def _remembering(fold: Callable[[str], str]) -> Callable[[str], str]:
    """``fold`` with the last answer at hand: neighbours in a listing share their folder."""
    last: tuple[str, str] = ("", "")

    def remembered(text: str) -> str:
        nonlocal last
        if text != last[0]:
            last = (text, fold(text))
        return last[1]

    return remembered
