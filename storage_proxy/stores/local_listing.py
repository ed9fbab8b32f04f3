"""A listing of local files in the byte order of their keys, one directory in memory at a time on each level.

The law: a directory sorts as its name with a ``/``, which makes the order of names the order of whole keys; and
nothing outside of the prefix's directory is looked at. Between two pages no descriptor is held.
"""

import os
from contextlib import suppress
from dataclasses import dataclass

from storage_proxy.common.names import RESERVED_PREFIX
from storage_proxy.stores.local_tree import TEMPORARIES, Parts, Tree, etag_of, is_absent, is_part
from storage_proxy.stores.port import BlobStat, whole_seconds

PAGE = 1000
"""Blobs in a page, at most."""

FOLDER_ETAG = '"empty-directory"'
"""The version of every directory without children: they have the same content."""


@dataclass(slots=True)
class _Directory:
    parts: Parts
    path: bytes
    names: list[bytes]  # those still to come, the next one last


def folder_marker(path: bytes, status: os.stat_result) -> BlobStat:
    """The entry that stands for a directory without children; ``path`` ends in ``/``."""
    return BlobStat(
        key=path.decode("utf-8", "surrogateescape"),
        size=0,
        etag=FOLDER_ETAG,
        last_modified=whole_seconds(status.st_mtime_ns // 10**9),
    )


def file_stat(key: str, status: os.stat_result, content_type: str | None = None) -> BlobStat:
    return BlobStat(
        key=key,
        size=status.st_size,
        etag=etag_of(status),
        last_modified=whole_seconds(status.st_mtime_ns // 10**9),
        content_type=content_type,
        type_is_guessed=True,
    )


class Listing:
    """The blobs of ``tree`` whose key begins with ``prefix`` and sorts after ``start_after``.

    Files that come or go meanwhile may be in it or not. A directory that cannot be read raises `OSError`.
    """

    def __init__(self, tree: Tree, prefix: bytes, start_after: bytes) -> None:
        self._tree = tree
        self._prefix = prefix
        self._start_after = start_after
        self._stack: list[_Directory] = []
        self._page: list[BlobStat] = []
        self._begun = False

    def next_page(self) -> list[BlobStat]:
        """At most `PAGE` blobs; none at the end. Blocks."""
        self._page = []
        if not self._begun:
            self._begun = True
            self._begin()
        while self._stack and len(self._page) < PAGE:
            directory = self._stack[-1]
            if not directory.names:
                self._stack.pop()
            elif directory.names[-1].endswith(b"/"):
                name = directory.names.pop()
                self._enter((*directory.parts, name[:-1]))
            else:
                self._take_files(directory)
        return self._page

    def _begin(self) -> None:
        *above, beginning = self._prefix.split(b"/")
        if all(map(is_part, above)):
            self._enter(tuple(above), beginning)

    def _enter(self, parts: Parts, beginning: bytes = b"") -> None:
        """Make the directory the next to be listed, of it the names that start with ``beginning``."""
        if parts[: len(TEMPORARIES)] == TEMPORARIES:
            return
        path = b"".join(part + b"/" for part in parts)
        try:
            with self._tree.directory(parts, readable=True) as fd:
                names = self._tree.names(fd, parts)
                status = os.fstat(fd)
        except OSError as error:
            if is_absent(error):
                return
            raise
        if names:
            wanted = [name for name in names if name.startswith(beginning) and self._may_follow(path + name)]
            wanted.sort(reverse=True)
            self._stack.append(_Directory(parts, path, wanted))
        elif self._is_wanted_marker(path):
            self._page.append(folder_marker(path, status))

    def _is_wanted_marker(self, path: bytes) -> bool:
        private = path in {b"", RESERVED_PREFIX.encode()}
        return not private and path.startswith(self._prefix) and path > self._start_after

    def _may_follow(self, path: bytes) -> bool:
        """Whether the file, or something in the directory, sorts after ``start_after``."""
        return path > self._start_after or (path.endswith(b"/") and self._start_after.startswith(path))

    def _take_files(self, directory: _Directory) -> None:
        """Move files into the page up to the next directory or until the page is full."""
        names = directory.names
        try:
            with self._tree.directory(directory.parts) as fd:
                while names and not names[-1].endswith(b"/") and len(self._page) < PAGE:
                    name = names.pop()
                    with suppress(FileNotFoundError):
                        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                        key = (directory.path + name).decode("utf-8", "surrogateescape")
                        self._page.append(file_stat(key, status))
        except OSError as error:
            if not is_absent(error):
                raise
            names.clear()  # the directory is gone
