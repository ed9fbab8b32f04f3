"""The programs that people open tar files with. What each sees is given in one form: names, sizes, SHA-256s.

REQUIRE_READERS=tar,bsdtar,7z,go makes an absent one a failure instead of a skip.
"""

import hashlib
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

from tests.support.zip_readers import Digests, Sizes, digest_of, digests_beneath, output, program

_GO = """
package main
import ("archive/tar"; "crypto/sha256"; "fmt"; "io"; "os")
func main() {
    file, err := os.Open(os.Args[2])
    if err != nil { panic(err) }
    r := tar.NewReader(file)
    for {
        h, err := r.Next()
        if err == io.EOF { return }
        if err != nil { panic(err) }
        if os.Args[1] == "list" {
            fmt.Printf("%d - %s\\n", h.Size, h.Name)
            continue
        }
        digest := sha256.New()
        read, err := io.Copy(digest, r)
        if err != nil { panic(err) }
        if read != h.Size { panic(h.Name) }
        fmt.Printf("%d %x %s\\n", read, digest.Sum(nil), h.Name)
    }
}
"""


def _extracted(archive: Path, tmp: Path) -> Digests:
    with tarfile.open(archive) as listed:
        folders = {f"{member.name}/" for member in listed.getmembers() if member.isdir()}
    return digests_beneath(tmp / "out", folders)


def _printed(lines: str) -> list[tuple[int, str, str]]:
    rows = [line.split(" ", 2) for line in lines.splitlines()]
    return [(int(size), digest, name) for size, digest, name in rows]


def gnu_read(archive: Path, tmp: Path) -> Digests:
    (tmp / "out").mkdir()
    assert output(program("tar"), "-xvf", archive, "-C", tmp / "out", cwd=tmp)
    return _extracted(archive, tmp)


def gnu_list(archive: Path, tmp: Path) -> Sizes:
    listing = output(program("tar"), "-tvf", archive, "--quoting-style=literal", cwd=tmp)
    # -rw-r--r-- 0/0               6 2023-11-14 22:13 folder/known.txt
    rows = re.findall(r"^[-d]rw[-x]r-[-x]r-[-x] 0/0 +(\d+) \S+ \S+ (.*)$", listing, re.MULTILINE)
    return {name: int(size) for size, name in rows}


def bsdtar_read(archive: Path, tmp: Path) -> Digests:
    (tmp / "out").mkdir()
    output(program("bsdtar"), "-xf", archive, "-C", tmp / "out", cwd=tmp)
    return _extracted(archive, tmp)


def bsdtar_list(archive: Path, tmp: Path) -> Sizes:
    rows = [line.split(maxsplit=8) for line in output(program("bsdtar"), "-tvf", archive, cwd=tmp).splitlines()]
    return {row[8]: int(row[4]) for row in rows}


def sevenzip_read(archive: Path, tmp: Path) -> Digests:
    assert "Everything is Ok" in output(program("7z"), "t", archive, cwd=tmp)
    output(program("7z"), "x", f"-o{tmp / 'out'}", archive, cwd=tmp)
    return _extracted(archive, tmp)


def sevenzip_list(archive: Path, tmp: Path) -> Sizes:
    listing = output(program("7z"), "l", "-slt", archive, cwd=tmp).partition("----------\n")[2]
    rows = re.findall(r"^Path = (.*)\nFolder = ([+-])\nSize = (\d+)$", listing, re.MULTILINE)
    return {name + ("/" if folder == "+" else ""): int(size) for name, folder, size in rows}


def _go(mode: str, archive: Path, tmp: Path) -> list[tuple[int, str, str]]:
    (tmp / "readtar.go").write_text(_GO)
    return _printed(output(program("go"), "run", "readtar.go", mode, archive, cwd=tmp))


def go_read(archive: Path, tmp: Path) -> Digests:
    return {name: digest for _, digest, name in _go("read", archive, tmp)}


def go_list(archive: Path, tmp: Path) -> Sizes:
    return {name: size for size, _, name in _go("list", archive, tmp)}


def python_read(archive: Path, tmp: Path) -> Digests:
    found = {}
    with tarfile.open(archive) as read:
        for member in read.getmembers():
            file = read.extractfile(member)
            name = member.name + ("/" if member.isdir() else "")
            found[name] = digest_of(file) if file else hashlib.sha256().hexdigest()
    return found


def python_list(archive: Path, tmp: Path) -> Sizes:
    with tarfile.open(archive) as read:
        return {member.name + ("/" if member.isdir() else ""): member.size for member in read.getmembers()}


READ: dict[str, Callable[[Path, Path], Digests]] = {
    "tar": gnu_read,
    "bsdtar": bsdtar_read,
    "7z": sevenzip_read,
    "python": python_read,
    "go": go_read,
}
"""From an archive and an empty directory to what the reader reads; those that extract do it into ``out`` there."""

LIST: dict[str, Callable[[Path, Path], Sizes]] = {
    "tar": gnu_list,
    "bsdtar": bsdtar_list,
    "7z": sevenzip_list,
    "python": python_list,
    "go": go_list,
}
"""From an archive and a directory to write in to the sizes that the reader lists."""
