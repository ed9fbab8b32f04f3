"""One file on its way into a local bucket: written beside the blobs, and linked into place when it is whole.

The law: the name appears at once, with a file that is durable, or not at all; and a name that is taken is never taken
from its file. Everything here blocks; `local` runs it in threads.
"""

import os
import secrets
import stat as modes
import threading
from contextlib import suppress

from storage_proxy.common.errors import BlobExists, StorageUnavailable, UnsafeName
from storage_proxy.stores.local_tree import TEMPORARIES, Parts, Tree, is_absent

_MAX_PART_BYTES = 255
_ATTEMPTS = 20
"""How often a folder may be removed between its making and the link, as an erasure beside it does."""


class Upload:
    """A file that will be ``parts``. Calls wait for each other; after `discard` only `discard` does anything."""

    def __init__(self, tree: Tree, parts: Parts) -> None:
        self._tree = tree
        self._parts = parts
        self._lock = threading.Lock()
        self._temporary = secrets.token_hex(16).encode()
        self._fd: int | None = None
        self._linked = False
        self._discarded = False

    def begin(self) -> None:
        """Raises `BlobExists` and `UnsafeName` where it is already known that the name cannot be had."""
        with self._lock:
            self._check_alive()
            if any(len(part) > _MAX_PART_BYTES for part in self._parts):
                raise UnsafeName
            self._refuse_taken()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with self._tree.directory(TEMPORARIES, make=True) as scratch:
                self._fd = os.open(self._temporary, flags, 0o644, dir_fd=scratch)

    def write(self, piece: bytes | bytearray) -> None:
        with self._lock:
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(self._open_fd(), rest) :]

    def commit(self) -> os.stat_result:
        """Give the file its name. Raises `BlobExists` when the name was taken meanwhile, `UnsafeName`."""
        with self._lock:
            fd = self._open_fd()
            os.fsync(fd)
            for _ in range(_ATTEMPTS):
                with suppress(FileNotFoundError):
                    self._link(fd)
                    break
            else:
                raise StorageUnavailable("The upload's folder is being removed")
            self._unlink_temporary()
            return os.fstat(fd)

    def close(self) -> None:
        """Call it once, after `commit`."""
        with self._lock:
            self._close()

    def discard(self) -> None:
        """Leave nothing of it, not even what `commit` made."""
        with self._lock:
            self._discarded = True
            if self._fd is None:
                return
            try:
                self._unlink_temporary()
                if self._linked:
                    self._unlink_blob(os.fstat(self._fd))
            finally:
                self._close()

    def _check_alive(self) -> None:
        if self._discarded:
            raise StorageUnavailable("The upload was given up")

    def _open_fd(self) -> int:
        self._check_alive()
        assert self._fd is not None
        return self._fd

    def _close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _link(self, fd: int) -> None:
        if os.fstat(fd).st_nlink == 0:  # before folders are made for it
            raise StorageUnavailable("The upload was discarded")
        try:
            with (
                self._tree.directory(TEMPORARIES) as scratch,
                self._tree.directory(self._parts[:-1], make=True) as folder,
            ):
                # Unlike a rename, a link never replaces.
                os.link(self._temporary, self._parts[-1], src_dir_fd=scratch, dst_dir_fd=folder, follow_symlinks=False)
                self._linked = True
                os.fsync(folder)
        except FileExistsError as error:
            self._refuse_taken()
            raise FileNotFoundError from error  # it is gone again
        except (NotADirectoryError, FileNotFoundError):
            self._refuse_taken()
            raise

    def _refuse_taken(self) -> None:
        """Raise `BlobExists` where there is a blob of this name, `UnsafeName` where there is something else."""
        try:
            with self._tree.directory(self._parts[:-1]) as folder:
                found = os.stat(self._parts[-1], dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return
        except OSError as error:
            if is_absent(error):  # a file where a folder should be, a name that the file system refuses
                raise UnsafeName from error
            raise
        raise BlobExists if modes.S_ISREG(found.st_mode) else UnsafeName

    def _unlink_temporary(self) -> None:
        with suppress(FileNotFoundError), self._tree.directory(TEMPORARIES) as scratch:
            os.unlink(self._temporary, dir_fd=scratch)

    def _unlink_blob(self, own: os.stat_result) -> None:
        """Take the name back, unless it is another file's by now."""
        with suppress(FileNotFoundError), self._tree.directory(self._parts[:-1], readable=True) as folder:
            found = os.stat(self._parts[-1], dir_fd=folder, follow_symlinks=False)
            if (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino):
                os.unlink(self._parts[-1], dir_fd=folder)
                os.fsync(folder)
