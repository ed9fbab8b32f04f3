"""The programs that people open archives with. What each sees is given in one form: names, sizes, SHA-256s.

REQUIRE_READERS=unzip,7z,bsdtar,java,go makes an absent one a failure instead of a skip.
"""

import hashlib
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

import pytest

Sizes = dict[str, int]
Digests = dict[str, str]
"""SHA-256 of each entry's content, in hex; a folder's name ends in / and its content is empty."""

_BUFFER = 1 << 20
_JAVA = """
import java.io.*; import java.security.*; import java.util.*; import java.util.zip.*;
public class ReadZip {
    static PrintStream out;
    public static void main(String[] args) throws Exception {
        out = new PrintStream(System.out, true, "UTF-8");
        if (args[0].equals("stream")) {
            try (ZipInputStream in = new ZipInputStream(new FileInputStream(args[1]))) {
                for (ZipEntry e; (e = in.getNextEntry()) != null; ) print(e, in, -1);
            }
            return;
        }
        try (ZipFile zip = new ZipFile(args[1])) {
            for (ZipEntry e : Collections.list(zip.entries())) {
                if (args[0].equals("list")) out.println(e.getSize() + " - " + e.getName());
                else print(e, zip.getInputStream(e), e.getSize());
            }
        }
    }
    static void print(ZipEntry e, InputStream in, long size) throws Exception {
        MessageDigest digest = MessageDigest.getInstance("SHA-256");
        byte[] buffer = new byte[1 << 20];
        long read = 0;
        for (int n; (n = in.read(buffer)) > 0; read += n) digest.update(buffer, 0, n);
        if (size >= 0 && size != read) throw new IOException(e.getName() + " has " + read + " bytes, not " + size);
        out.println(read + " " + HexFormat.of().formatHex(digest.digest()) + " " + e.getName());
    }
}
"""
_GO = """
package main
import ("archive/zip"; "crypto/sha256"; "fmt"; "io"; "os")
func main() {
    r, err := zip.OpenReader(os.Args[2])
    if err != nil { panic(err) }
    for _, f := range r.File {
        if os.Args[1] == "list" {
            fmt.Printf("%d - %s\\n", f.UncompressedSize64, f.Name)
            continue
        }
        body, err := f.Open()
        if err != nil { panic(err) }
        digest := sha256.New()
        read, err := io.Copy(digest, body)
        if err != nil { panic(err) }
        if uint64(read) != f.UncompressedSize64 { panic(f.Name) }
        fmt.Printf("%d %x %s\\n", read, digest.Sum(nil), f.Name)
    }
}
"""


def program(name: str) -> str:
    """The path of a reader; skips (or fails, see above) when it is not installed."""
    found = shutil.which(name)
    if found is None:
        if name in os.environ.get("REQUIRE_READERS", "").split(","):
            pytest.fail(f"{name} is required by REQUIRE_READERS and not installed")
        pytest.skip(f"{name} is not installed")
    return found


def installed(reader: object) -> str:
    """The name of a reader that is installed, for a fixture's parameter; Python is always. As `program` otherwise."""
    name = str(reader)
    if name != "python":
        program(name)
    return name


def output(*command: str | Path, cwd: Path) -> str:
    """What a command prints. Raises RuntimeError, with the ends of both streams, when it fails."""
    environment = os.environ | {"LC_ALL": "C.UTF-8", "TZ": "UTC"}
    # the module file is absent on purpose, and nothing may be fetched
    environment |= {"GO111MODULE": "off", "GOPROXY": "off", "GOTOOLCHAIN": "local", "GOFLAGS": ""}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def digests(contents: Mapping[str, bytes]) -> Digests:
    """What every reader should say of ``contents``."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def digest_of(file: IO[bytes]) -> str:
    """SHA-256 of what is left of ``file``, in hex."""
    digest = hashlib.sha256()
    while chunk := file.read(_BUFFER):
        digest.update(chunk)
    return digest.hexdigest()


def digests_beneath(folder: Path, folders: set[str]) -> Digests:
    """The files beneath ``folder``, and those of its directories that ``folders`` names."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file():
            with path.open("rb") as file:
                found[name] = digest_of(file)
        elif f"{name}/" in folders:
            found[f"{name}/"] = hashlib.sha256().hexdigest()
    return found


def _extracted(archive: Path, tmp: Path) -> Digests:
    with zipfile.ZipFile(archive) as listed:
        folders = {name for name in listed.namelist() if name.endswith("/")}
    return digests_beneath(tmp / "out", folders)


def _printed(lines: str) -> tuple[Sizes, Digests]:
    rows = [line.split(" ", 2) for line in lines.splitlines()]
    return {name: int(size) for size, _, name in rows}, {name: digest for _, digest, name in rows}


def unzip_read(archive: Path, tmp: Path) -> Digests:
    assert "No errors detected" in output(program("unzip"), "-t", archive, cwd=tmp)
    output(program("unzip"), archive, "-d", tmp / "out", cwd=tmp)
    return _extracted(archive, tmp)


def unzip_list(archive: Path, tmp: Path) -> Sizes:
    # -rw-r--r--  6.3 unx        6 b- stor 23-Nov-14 22:13 folder/known.txt
    rows = re.findall(
        r"^[-d]\S+ +\S+ unx +(\d+) \S+ stor \S+ \S+ (.*)$", output("unzip", "-Z", archive, cwd=tmp), re.MULTILINE
    )
    return {name: int(size) for size, name in rows}


def sevenzip_read(archive: Path, tmp: Path) -> Digests:
    assert "Everything is Ok" in output(program("7z"), "t", archive, cwd=tmp)
    output(program("7z"), "x", f"-o{tmp / 'out'}", archive, cwd=tmp)
    return _extracted(archive, tmp)


def sevenzip_list(archive: Path, tmp: Path) -> Sizes:
    listing = output("7z", "l", "-slt", archive, cwd=tmp).partition("----------\n")[2]
    rows = re.findall(r"^Path = (.*)\nFolder = ([+-])\nSize = (\d+)$", listing, re.MULTILINE)
    return {name + ("/" if folder == "+" else ""): int(size) for name, folder, size in rows}


def bsdtar_read(archive: Path, tmp: Path) -> Digests:
    (tmp / "out").mkdir()
    output(program("bsdtar"), "-xf", archive, "-C", tmp / "out", cwd=tmp)
    return _extracted(archive, tmp)


def bsdtar_list(archive: Path, tmp: Path) -> Sizes:
    rows = [line.split(maxsplit=8) for line in output("bsdtar", "-tvf", archive, cwd=tmp).splitlines()]
    return {row[8]: int(row[4]) for row in rows}


def java(mode: str, archive: Path, tmp: Path) -> tuple[Sizes, Digests]:
    """By ZipInputStream (``stream``) or ZipFile (``read``, ``list``)."""
    (tmp / "ReadZip.java").write_text(_JAVA)
    return _printed(output(program("java"), "-Xmx256m", "ReadZip.java", mode, archive, cwd=tmp))


def go(mode: str, archive: Path, tmp: Path) -> tuple[Sizes, Digests]:
    """By archive/zip: ``read`` or ``list``."""
    (tmp / "readzip.go").write_text(_GO)
    return _printed(output(program("go"), "run", "readzip.go", mode, archive, cwd=tmp))


def python_read(archive: Path, tmp: Path) -> Digests:
    found = {}
    with zipfile.ZipFile(archive) as read:
        for name in read.namelist():
            with read.open(name) as file:
                found[name] = digest_of(file)  # to its end: that is where zipfile compares the CRC-32
    return found


def python_list(archive: Path, tmp: Path) -> Sizes:
    with zipfile.ZipFile(archive) as read:
        return {info.filename: info.file_size for info in read.infolist()}


READ: dict[str, Callable[[Path, Path], Digests]] = {
    "unzip": unzip_read,
    "7z": sevenzip_read,
    "bsdtar": bsdtar_read,
    "python": python_read,
    "java": lambda archive, tmp: java("read", archive, tmp)[1],
    "go": lambda archive, tmp: go("read", archive, tmp)[1],
}
"""From an archive and an empty directory to what the reader reads; those that extract do it into ``out`` there."""

LIST: dict[str, Callable[[Path, Path], Sizes]] = {
    "unzip": unzip_list,
    "7z": sevenzip_list,
    "bsdtar": bsdtar_list,
    "python": python_list,
    "java": lambda archive, tmp: java("list", archive, tmp)[0],
    "go": lambda archive, tmp: go("list", archive, tmp)[0],
}
"""From an archive and a directory to write in to the sizes that the reader lists."""
