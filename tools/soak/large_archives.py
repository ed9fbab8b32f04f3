"""Archives that need every part of zip64, opened by the programs that people have; and what they cost the proxy."""

import asyncio
import random
import time
import zipfile
import zlib
from pathlib import Path

from tests.support.programs import Service, run, service
from tools.soak.files import cut_at, size_of
from tools.soak.record import Record, Scale, mib
from tools.soak.watch import memory_of

_ALL_CRCS = "[mint]\ncrc32_read_bytes = 1000000000000\ncrc32_seconds = 600"
_NO_CRCS = "[mint]\ncrc32_read_bytes = 0"
_MAX_GROWTH = 64 << 20
_MARK = b"not a hole"

Expected = dict[str, tuple[int, int]]
"""Size and CRC-32 by name."""


async def archives_of_huge_entries(scale: Scale, record: Record, directory: Path) -> None:
    """Three sparse entries of over 5 GiB each."""
    sizes = [scale.of(5 << 30, 3 << 20) + extra for extra in (1, 12_345_678, 200)]
    root = directory / "blobs"
    (root / "set").mkdir(parents=True)
    for index, size in enumerate(sizes):
        with (root / f"set/{index}.bin").open("wb") as sparse:
            for position in (0, size // 2, size - len(_MARK)):
                sparse.seek(position)
                sparse.write(_MARK)
    record.did(
        f"3 sparse local files of {', '.join(f'{size:,}' for size in sizes)} bytes as one archive, its CRC-32s read at "
        "mint, then again unknown (data descriptors); fetched by curl, in the first case cut at a random byte and "
        "resumed; opened by unzip -t, 7z t and Python's zipfile, whose sizes and CRC-32s are compared with the files'."
    )
    await _both_ways(root, record, directory)


async def archives_of_many_entries(scale: Scale, record: Record, directory: Path) -> None:
    """70,000 tiny entries."""
    count = scale.of(70_000, 300)
    root = directory / "blobs"
    for index in range(count):
        folder = root / f"set/{index // 1000}"
        if index % 1000 == 0:
            folder.mkdir(parents=True)
        (folder / f"{index}.txt").write_text(f"entry {index}\n" * (index % 7))
    record.did(f"{count:,} local files of 0 to 80 bytes as one archive, the rest as for the huge entries.")
    await _both_ways(root, record, directory)


async def _both_ways(root: Path, record: Record, directory: Path) -> None:
    expected = await asyncio.to_thread(_expected, root / "set")
    buckets = {"default": {"kind": "local", "root": str(root)}}
    for known, more in ((True, _ALL_CRCS), (False, _NO_CRCS)):
        way = "CRC-32s known" if known else "CRC-32s unknown"
        async with service(directory / way.replace(" ", "-"), buckets, more=more) as running:
            archive = await _fetched(running, directory / "archive.zip", known, way, record)
        try:
            await _open_everywhere(archive, expected, way, record)
        finally:
            archive.unlink()


async def _fetched(running: Service, archive: Path, known: bool, way: str, record: Record) -> Path:
    async with memory_of(running.proxies[0]) as memory:
        began = time.monotonic()
        minted = await running.mint("archive", {"prefix": "set/"})
        record.saw(f"{way}: seconds to mint", f"{time.monotonic() - began:.1f}")
        record.saw(f"{way}: entries", f"{minted['entries']:,}")
        record.saw(f"{way}: resumable", minted["resumable"], holds=minted["resumable"] is known)
        began = time.monotonic()
        code, printed = await run("curl", "-sSf", "-o", str(archive), minted["url"])
        record.saw(f"{way}: exit code of curl", f"{code} {printed}".strip(), holds=code == 0)
        seconds = time.monotonic() - began
        size = size_of(archive)
        seen = f"{size:,}, {minted['size']:,}"
        record.saw(f"{way}: bytes that came, the mint's size", seen, holds=size == minted["size"])
        record.saw(f"{way}: seconds to fetch", f"{seconds:.1f} ({size / seconds / 1e6:,.0f} MB/s)")
        if known:
            cut = random.randrange(size)
            cut_at(archive, cut)
            code, printed = await run("curl", "-sSf", "-C", "-", "-o", str(archive), minted["url"])
            whole = code == 0 and size_of(archive) == size
            record.saw(f"{way}: cut at byte {cut:,} and resumed", f"exit code {code} {printed}".strip(), holds=whole)
    growth = memory.growth
    record.saw(f"{way}: growth of the proxy's memory, < 64 MiB", mib(growth), holds=growth < _MAX_GROWTH)
    return archive


async def _open_everywhere(archive: Path, expected: Expected, way: str, record: Record) -> None:
    for command in (["unzip", "-tqq"], ["7z", "t", "-bso0"]):
        began = time.monotonic()
        code, printed = await run(*command, str(archive))
        seen = f"exit code {code} in {time.monotonic() - began:.1f} s"
        record.saw(f"{way}: {' '.join(command)}", seen if code == 0 else f"{seen}: {printed[-300:]}", holds=code == 0)
    began = time.monotonic()
    broken, listed = await asyncio.to_thread(_read_by_python, archive)
    seen = f"{len(listed):,} entries, first broken one: {broken}, in {time.monotonic() - began:.1f} s"
    record.saw(f"{way}: Python's zipfile", seen, holds=broken is None)
    same = listed == expected
    record.saw(f"{way}: names, sizes and CRC-32s are the files'", same, holds=same)


def _read_by_python(archive: Path) -> tuple[str | None, Expected]:
    with zipfile.ZipFile(archive) as opened:
        listed = {info.filename: (info.file_size, info.CRC) for info in opened.infolist()}
        return opened.testzip(), listed


def _expected(folder: Path) -> Expected:
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            crc = 0
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    crc = zlib.crc32(chunk, crc)
            found[path.relative_to(folder).as_posix()] = (path.stat().st_size, crc)
    return found
