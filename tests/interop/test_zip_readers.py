"""Archives as the programs that people have read them. REQUIRE_READERS=unzip,7z,bsdtar,java,go makes an absent
one a failure instead of a skip.
"""

import os
import re
import shutil
import subprocess
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from storage_proxy.formats.entries import Entry
from storage_proxy.formats.layout import Framing
from storage_proxy.formats.zip_plan import ZipArchive

NOW = 1_700_000_001
CONTENTS = {
    "folder/": b"",
    "folder/known.txt": b"hello\n",
    "folder/empty": b"",
    "folder/with space & 'quotes'.bin": bytes(range(256)) * 300,
    "grüße/日本語-😀.txt": "grüße\n".encode(),
    "MISSING.txt": b"runs/1/a.bin\tblob-not-found\n",
}
JAVA = """
import java.io.*; import java.util.*; import java.util.zip.*;
public class ReadZip {
    public static void main(String[] args) throws Exception {
        PrintStream out = new PrintStream(System.out, true, "UTF-8");
        if (args[0].equals("stream")) {
            try (ZipInputStream in = new ZipInputStream(new FileInputStream(args[1]))) {
                for (ZipEntry e; (e = in.getNextEntry()) != null; ) {
                    byte[] content = in.readAllBytes();
                    out.println(content.length + " " + hex(content) + " " + e.getName());
                }
            }
            return;
        }
        try (ZipFile zip = new ZipFile(args[1])) {
            for (ZipEntry e : Collections.list(zip.entries())) {
                byte[] content = args[0].equals("list") ? new byte[0] : zip.getInputStream(e).readAllBytes();
                out.println(e.getSize() + " " + hex(content) + " " + e.getName());
            }
        }
    }
    static String hex(byte[] bytes) { return "x" + HexFormat.of().formatHex(bytes); }
}
"""
GO = """
package main
import ("archive/zip"; "fmt"; "io"; "os")
func main() {
    r, err := zip.OpenReader(os.Args[2])
    if err != nil { panic(err) }
    for _, f := range r.File {
        var content []byte
        if os.Args[1] == "read" {
            body, err := f.Open()
            if err != nil { panic(err) }
            if content, err = io.ReadAll(body); err != nil { panic(err) }
        }
        fmt.Printf("%d x%x %s\\n", f.UncompressedSize64, content, f.Name)
    }
}
"""

Tree = dict[str, bytes]
Sizes = dict[str, int]


def program(name: str) -> str:
    """The path of a reader; skips (or fails, see above) when it is not installed."""
    found = shutil.which(name)
    if found is None:
        if name in os.environ.get("REQUIRE_READERS", "").split(","):
            pytest.fail(f"{name} is required by REQUIRE_READERS and not installed")
        pytest.skip(f"{name} is not installed")
    return found


def output(*command: str | Path, cwd: Path) -> str:
    environment = os.environ | {"LC_ALL": "C.UTF-8", "TZ": "UTC"}
    # the module file is absent on purpose, and nothing may be fetched
    environment |= {"GO111MODULE": "off", "GOPROXY": "off", "GOTOOLCHAIN": "local", "GOFLAGS": ""}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def extracted(folder: Path) -> Tree:
    """What was extracted; files must have the archive's times, exact to the second."""
    tree = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file():
            tree[name] = path.read_bytes()
            assert int(path.stat().st_mtime) == NOW, name
        elif f"{name}/" in CONTENTS:
            tree[f"{name}/"] = b""
    return tree


def printed(lines: str) -> tuple[Sizes, Tree]:
    rows = [line.split(" ", 2) for line in lines.splitlines()]
    return {name: int(size) for size, _, name in rows}, {name: bytes.fromhex(body[1:]) for _, body, name in rows}


def unzip_read(archive: Path, tmp: Path) -> Tree:
    assert "No errors detected" in output(program("unzip"), "-t", archive, cwd=tmp)
    output(program("unzip"), archive, "-d", tmp / "out", cwd=tmp)
    return extracted(tmp / "out")


def unzip_list(archive: Path, tmp: Path) -> Sizes:
    # -rw-r--r--  6.3 unx        6 b- stor 23-Nov-14 22:13 folder/known.txt
    rows = re.findall(
        r"^[-d]\S+ +\S+ unx +(\d+) \S+ stor \S+ \S+ (.*)$", output("unzip", "-Z", archive, cwd=tmp), re.MULTILINE
    )
    return {name: int(size) for size, name in rows}


def sevenzip_read(archive: Path, tmp: Path) -> Tree:
    assert "Everything is Ok" in output(program("7z"), "t", archive, cwd=tmp)
    output(program("7z"), "x", f"-o{tmp / 'out'}", archive, cwd=tmp)
    return extracted(tmp / "out")


def sevenzip_list(archive: Path, tmp: Path) -> Sizes:
    listing = output("7z", "l", "-slt", archive, cwd=tmp).partition("----------\n")[2]
    rows = re.findall(r"^Path = (.*)\nFolder = ([+-])\nSize = (\d+)$", listing, re.MULTILINE)
    return {name + ("/" if folder == "+" else ""): int(size) for name, folder, size in rows}


def bsdtar_read(archive: Path, tmp: Path) -> Tree:
    (tmp / "out").mkdir()
    output(program("bsdtar"), "-xf", archive, "-C", tmp / "out", cwd=tmp)
    return extracted(tmp / "out")


def bsdtar_list(archive: Path, tmp: Path) -> Sizes:
    rows = [line.split(maxsplit=8) for line in output("bsdtar", "-tvf", archive, cwd=tmp).splitlines()]
    return {row[8]: int(row[4]) for row in rows}


def java(mode: str, archive: Path, tmp: Path) -> tuple[Sizes, Tree]:
    (tmp / "ReadZip.java").write_text(JAVA)
    return printed(output(program("java"), "-Xmx256m", "ReadZip.java", mode, archive, cwd=tmp))


def go(mode: str, archive: Path, tmp: Path) -> tuple[Sizes, Tree]:
    (tmp / "readzip.go").write_text(GO)
    return printed(output(program("go"), "run", "readzip.go", mode, archive, cwd=tmp))


def python_read(archive: Path, tmp: Path) -> Tree:
    with zipfile.ZipFile(archive) as read:
        assert read.testzip() is None
        return {name: read.read(name) for name in read.namelist()}


def python_list(archive: Path, tmp: Path) -> Sizes:
    with zipfile.ZipFile(archive) as read:
        return {info.filename: info.file_size for info in read.infolist()}


READ: dict[str, Callable[[Path, Path], Tree]] = {
    "unzip": unzip_read,
    "7z": sevenzip_read,
    "bsdtar": bsdtar_read,
    "python": python_read,
    "java": lambda archive, tmp: java("read", archive, tmp)[1],
    "go": lambda archive, tmp: go("read", archive, tmp)[1],
}
LIST: dict[str, Callable[[Path, Path], Sizes]] = {
    "unzip": unzip_list,
    "7z": sevenzip_list,
    "bsdtar": bsdtar_list,
    "python": python_list,
    "java": lambda archive, tmp: java("list", archive, tmp)[0],
    "go": lambda archive, tmp: go("list", archive, tmp)[0],
}


@pytest.fixture(params=list(READ))
def reader(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name != "python":
        program(name)
    return name


def write(path: Path, entries: Sequence[Entry], contents: Sequence[bytes]) -> Path:
    """The archive as a file; an entry without content here is a hole, which reads as zeros."""
    archive = ZipArchive.of(entries)
    with path.open("wb") as file:
        for segment in archive.segments(0, archive.plan.size, lambda entry: zlib.crc32(contents[entry])):
            if isinstance(segment, Framing):
                file.write(segment.render())
            elif contents[segment.entry]:
                file.write(contents[segment.entry][segment.start : segment.stop])
            else:
                file.seek(segment.length, os.SEEK_CUR)
    assert path.stat().st_size == archive.plan.size
    return path


def small(path: Path, *, known: bool) -> Path:
    entries = [
        Entry(name, "media", name, len(content), '"e"', NOW, zlib.crc32(content) if known else None)
        for name, content in CONTENTS.items()
    ]
    return write(path, entries, list(CONTENTS.values()))


@pytest.mark.parametrize("known", [True, False], ids=["crcs known", "crcs learned"])
def test_every_seeking_reader_agrees_on_names_sizes_and_bytes(reader: str, known: bool, tmp_path: Path) -> None:
    archive = small(tmp_path / "archive.zip", known=known)
    assert READ[reader](archive, tmp_path) == CONTENTS
    assert LIST[reader](archive, tmp_path) == {name: len(content) for name, content in CONTENTS.items()}


def test_javas_zip_input_stream_reads_an_archive_whose_crcs_were_known(tmp_path: Path) -> None:
    sizes, tree = java("stream", small(tmp_path / "archive.zip", known=True), tmp_path)
    assert tree == CONTENTS
    assert sizes == {name: len(content) for name, content in CONTENTS.items()}


def test_javas_zip_input_stream_refuses_a_stored_entry_with_a_data_descriptor(tmp_path: Path) -> None:
    """Why CRC-32s are worth knowing before an archive is laid out."""
    archive = small(tmp_path / "archive.zip", known=False)
    program("java")
    with pytest.raises(RuntimeError, match="only DEFLATED entries can have EXT descriptor"):
        java("stream", archive, tmp_path)


def test_bsdtar_reads_an_archive_from_a_pipe_when_crcs_were_known(tmp_path: Path) -> None:
    archive = small(tmp_path / "archive.zip", known=True)
    (tmp_path / "out").mkdir()
    with archive.open("rb") as file:
        subprocess.run([program("bsdtar"), "-xf", "-", "-C", tmp_path / "out"], stdin=file, check=True)
    tree = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert tree == {name for name in CONTENTS if not name.endswith("/")}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Over 4 GiB, mostly a hole: one entry needs zip64 for its size, the next for its offset."""
    sizes = {"small.bin": 3, "large.bin": 5 << 30, "far.bin": 4}
    entries = [Entry(name, "media", name, size, '"e"', NOW, 7) for name, size in sizes.items()]
    path = write(tmp_path_factory.mktemp("large") / "large.zip", entries, [b"abc", b"", b"wxyz"])
    yield path
    path.unlink()


def test_every_reader_lists_an_archive_of_over_four_gibibytes(reader: str, large: Path, tmp_path: Path) -> None:
    assert LIST[reader](large, tmp_path) == {"small.bin": 3, "large.bin": 5 << 30, "far.bin": 4}


def test_every_reader_lists_more_entries_than_16_bits_count(reader: str, tmp_path: Path) -> None:
    names = [f"{index:05}.txt" for index in range(0x10001)]
    archive = write(
        tmp_path / "many.zip", [Entry(name, "media", name, 0, "", NOW, 0) for name in names], [b""] * len(names)
    )
    assert LIST[reader](archive, tmp_path) == dict.fromkeys(names, 0)
