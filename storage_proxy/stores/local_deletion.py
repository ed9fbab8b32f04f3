"""Files of a local bucket are removed, and the folders that this leaves empty.

The law: a symlink is removed and never followed, and nothing outside of the root is touched. Everything here blocks;
`local` runs it in threads, in steps that remove at most `STEP` files each.
"""

import errno
import os
import stat as modes
from collections.abc import Iterable
from contextlib import suppress

from storage_proxy.stores.local_tree import TEMPORARIES, Location, Parts, Tree, is_absent, is_part

STEP = 1000
"""Files that one step removes, at most."""

_NOT_EMPTY = frozenset({errno.ENOTEMPTY, errno.EEXIST})


def delete_all(tree: Tree, locations: Iterable[Location]) -> None:
    """Remove these blobs where they are there, and folders above them that have nothing else."""
    folders: set[Parts] = set()
    for parts, folder in locations:
        above = parts[:-1]
        try:
            with tree.directory(above) as fd:
                if folder:
                    _remove_if_empty(fd, parts[-1])
                elif modes.S_ISREG(os.stat(parts[-1], dir_fd=fd, follow_symlinks=False).st_mode):
                    os.unlink(parts[-1], dir_fd=fd)
                else:
                    continue
        except OSError as error:
            if not is_absent(error):
                raise
            continue
        folders.add(above)
    for above in folders:
        _sync(tree, _prune(tree, above))


def discard_temporaries(tree: Tree, older_than: float) -> int:
    """Remove the temporary files that were last written before ``older_than``; how many."""
    removed = 0
    try:
        with tree.directory(TEMPORARIES, readable=True) as fd, os.scandir(fd) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_mtime < older_than:
                        os.unlink(entry.name, dir_fd=fd)
                        removed += 1
    except OSError as error:
        if not is_absent(error):
            raise
    return removed


class Erasure:
    """Removes everything beneath the directory ``parts``, and the directory, depth first.

    Between two steps no descriptor is held, and of each directory on the way down there is only its name.
    """

    def __init__(self, tree: Tree, parts: Parts) -> None:
        self._tree = tree
        self._top = parts
        self._stack: list[Parts] = [parts] if all(map(is_part, parts)) else []
        self._untouched = True  # nothing was removed since the directory on top was entered

    def next_step(self) -> int | None:
        """Remove at most `STEP` files; how many, None when nothing is left. An empty folder counts as one."""
        if not self._stack:
            return None
        removed = 0
        while self._stack and removed < STEP:
            removed += self._advance(STEP - removed)
        return removed

    def _advance(self, budget: int) -> int:
        """Remove files of the directory that is on top, go down into its first folder, or remove it."""
        parts = self._stack[-1]
        try:
            with self._tree.directory(parts, readable=True) as fd:
                removed, below = self._remove_files(fd, parts, budget)
        except OSError as error:
            if not is_absent(error):
                raise
            self._stack.pop()  # it is gone, or not a directory
            return 0
        if below is not None:
            self._stack.append((*parts, below))
            self._untouched = True
            return removed
        if not removed:  # else look again: a listing may pass over what lies beside a removed file
            self._stack.pop()
            removed = int(self._remove_directory(parts) and self._untouched)
        self._untouched = False
        return removed

    @staticmethod
    def _remove_files(fd: int, parts: Parts, budget: int) -> tuple[int, bytes | None]:
        """How many were removed, and the first directory that is in the way."""
        removed = 0
        with os.scandir(fd) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                if removed == budget:
                    break
                if not entry.is_dir(follow_symlinks=False):
                    with suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=fd)
                        removed += 1
                elif (*parts, name) != TEMPORARIES:
                    return removed, name
        return removed, None

    def _remove_directory(self, parts: Parts) -> bool:
        with self._tree.directory(parts[:-1]) as fd:
            gone = _remove_if_empty(fd, parts[-1])
        if parts == self._top:
            _sync(self._tree, _prune(self._tree, parts[:-1]))
        return gone


def _remove_if_empty(fd: int, name: bytes) -> bool:
    try:
        os.rmdir(name, dir_fd=fd)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in _NOT_EMPTY:
            return False
        raise
    return True


def _prune(tree: Tree, parts: Parts) -> Parts:
    """Remove the directory and those above it as far as they are empty; the first that stays. Never the root."""
    while parts:
        try:
            with tree.directory(parts[:-1]) as fd:
                os.rmdir(parts[-1], dir_fd=fd)
        except FileNotFoundError:
            pass
        except OSError:
            break
        parts = parts[:-1]
    return parts


def _sync(tree: Tree, parts: Parts) -> None:
    with suppress(FileNotFoundError), tree.directory(parts, readable=True) as fd:
        os.fsync(fd)
