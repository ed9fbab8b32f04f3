"""The files beneath one directory, opened so that no path leaves it: component by component, never through a symlink.

Everything here blocks and raises `OSError`; `local` runs it in threads and translates. A blob is a regular file;
symlinks, pipes, sockets and devices are not there. Paths are tuples of byte strings, so any file name will do.
"""

import errno
import os
import secrets
import stat as modes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from storage_proxy.common.errors import BlobChanged, ServiceError, StorageError, StorageTimeout, StorageUnavailable
from storage_proxy.common.names import RESERVED_PREFIX

Parts = tuple[bytes, ...]

TEMPORARIES: Parts = (RESERVED_PREFIX.rstrip("/").encode(), b"tmp")
"""Where files are while they are written: never a blob, never listed."""

# O_PATH asks for search permission only; where there is none (not Linux) reading is asked for too.
_PASS_THROUGH = getattr(os, "O_PATH", os.O_RDONLY)
_DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: a pipe that took the file's place since the look at it must not block the open.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY

_ABSENT = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.EINVAL, errno.EILSEQ}
)
_UNAVAILABLE = frozenset(
    {errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOTCONN, errno.EHOSTDOWN}
)


class Location(NamedTuple):
    """Where a key lies: ``folder`` when it ends in ``/`` and so names a directory."""

    parts: Parts
    folder: bool


class Opened(NamedTuple):
    """An open file and the version of it that was found: ``size`` in bytes."""

    fd: int
    etag: str
    size: int


def is_absent(error: OSError) -> bool:
    """Whether the system said in one of its ways that there is no such file."""
    return error.errno in _ABSENT


def storage_failure(error: OSError) -> ServiceError:
    """What the port calls this error, with nothing of the path in it."""
    if isinstance(error, TimeoutError):
        return StorageTimeout()
    name = errno.errorcode.get(error.errno or 0, "unknown error")
    if error.errno in _UNAVAILABLE:
        return StorageUnavailable(f"The file system is unavailable ({name})")
    return StorageError(f"The file system refused ({name})")


def is_part(part: bytes) -> bool:
    """Whether it can be the name of one entry of a directory."""
    return part not in {b"", b".", b".."} and b"\0" not in part


def locate(key: str) -> Location | None:
    """Where ``key`` lies, or None when no file can have that key."""
    try:
        path = key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return None
    if path.decode("utf-8", "surrogateescape") != key:
        return None  # surrogates that spell valid UTF-8: a second name of another key
    parts = tuple(path.removesuffix(b"/").split(b"/"))
    private = parts[: len(TEMPORARIES)] == TEMPORARIES or key == RESERVED_PREFIX
    if private or not all(map(is_part, parts)):
        return None
    return Location(parts, folder=path.endswith(b"/"))


def etag_of(status: os.stat_result) -> str:
    """The version of a file: inode, size and time of modification.

    A file rewritten in place to the same size within one tick of the kernel's clock keeps its version.
    """
    return f'"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"'


def read_version(fd: int, etag: str, offset: int, size: int) -> bytes:
    """At most ``size`` bytes at ``offset``, or `BlobChanged` when they may not be those of version ``etag``."""
    chunk = os.pread(fd, size, offset)
    if etag_of(os.fstat(fd)) != etag or not chunk:
        raise BlobChanged
    return chunk


def fill_version(fd: int, etag: str, offset: int, room: memoryview) -> int:
    """As `read_version`, into ``room``: how many bytes."""
    count = os.preadv(fd, [room], offset)
    if etag_of(os.fstat(fd)) != etag or not count:
        raise BlobChanged
    return count


class Tree:
    """The directory ``root``, which may be a symlink itself and is opened anew by each operation."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @contextmanager
    def directory(self, parts: Parts, *, readable: bool = False, make: bool = False) -> Iterator[int]:
        """A descriptor of the directory ``parts``: for lookups alone, or also ``readable``; ``make`` creates it."""
        access = os.O_RDONLY if readable or make else _PASS_THROUGH
        try:
            fd = os.open(self._root, access | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            if is_absent(error):
                raise StorageError("The directory of the bucket does not exist") from error
            raise
        try:
            for part in parts:
                fd = self._descend(fd, part, access, make=make)
            yield fd
        finally:
            os.close(fd)

    @staticmethod
    def _descend(fd: int, part: bytes, access: int, *, make: bool) -> int:
        """The descriptor of ``part`` in ``fd``, which is closed unless this raises."""
        if make:
            with suppress(FileExistsError):
                os.mkdir(part, dir_fd=fd)
                os.fsync(fd)
        child = os.open(part, access | _DIRECTORY, dir_fd=fd)
        os.close(fd)
        return child

    def status(self, parts: Parts) -> os.stat_result | None:
        """What is known of the regular file, None when there is none."""
        with self.directory(parts[:-1]) as fd:
            status = os.stat(parts[-1], dir_fd=fd, follow_symlinks=False)
        return status if modes.S_ISREG(status.st_mode) else None

    def open(self, parts: Parts) -> Opened | None:
        """The regular file, which the caller closes, or None when there is none."""
        with self.directory(parts[:-1]) as folder:
            # Opening a device can have effects, so look first; look again, for it may have been replaced.
            if not modes.S_ISREG(os.stat(parts[-1], dir_fd=folder, follow_symlinks=False).st_mode):
                return None
            fd = os.open(parts[-1], _FILE, dir_fd=folder)
        status = os.fstat(fd)
        if not modes.S_ISREG(status.st_mode):
            os.close(fd)
            return None
        return Opened(fd, etag_of(status), status.st_size)

    def names(self, fd: int, parts: Parts) -> list[bytes]:
        """The files and directories in ``fd``, the directory ``parts``: the latter with a ``/`` at the end."""
        names = []
        with os.scandir(fd) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                if entry.is_file(follow_symlinks=False):
                    names.append(name)
                elif entry.is_dir(follow_symlinks=False) and (*parts, name) != TEMPORARIES:
                    names.append(name + b"/")
        return names

    def write(self, parts: Parts, body: bytes) -> None:
        """Put ``body`` in the file's place at once, durably, making the directories above it."""
        temporary = secrets.token_hex(16).encode()
        with self.directory(TEMPORARIES, make=True) as scratch, self.directory(parts[:-1], make=True) as folder:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(temporary, flags, 0o644, dir_fd=scratch)
            try:
                with os.fdopen(fd, "wb") as file:
                    file.write(body)
                    file.flush()
                    os.fsync(fd)
                os.rename(temporary, parts[-1], src_dir_fd=scratch, dst_dir_fd=folder)
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary, dir_fd=scratch)
                raise
            os.fsync(folder)

    def make_directory(self, parts: Parts) -> None:
        """Create the directory and those above it where they are missing."""
        with self.directory(parts, make=True):
            pass
