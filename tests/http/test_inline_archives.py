"""Archives whose token lists their files, which are looked up anew by each request: the real proxy, local files."""

import os
import time
from pathlib import Path

from storage_proxy.common.tokens import ArchiveGrant, InlineFile
from tests.support.proxy import local_settings, running


def replaced(file: Path, content: bytes, age: int) -> None:
    """Put ``content`` there in one step, last modified ``age`` seconds ago."""
    new = file.with_suffix(".new")
    new.write_bytes(content)
    os.utime(new, (time.time() - age,) * 2)
    new.replace(file)


async def test_a_date_does_not_join_two_archives(tmp_path: Path) -> None:
    """The latest file stays as it is, so does Last-Modified; the other one is replaced by an older one of its size."""
    root = tmp_path / "blobs"
    root.mkdir()
    replaced(root / "a.bin", b"a" * 200_000, 5000)
    replaced(root / "b.bin", b"b" * 200_000, 3000)
    files = tuple(InlineFile(key=name, name=name) for name in ("a.bin", "b.bin"))
    async with running(local_settings(root)) as proxy:
        url = proxy.url(ArchiveGrant(bucket="default", filename="a.tar", format="tar", files=files))
        async with proxy.http.get(url) as answer:
            before = await answer.read()
            etag, date = answer.headers["ETag"], answer.headers["Last-Modified"]
        replaced(root / "a.bin", b"z" * 200_000, 6000)
        for condition in ({"Range": "bytes=100000-", "If-Range": date}, {"If-Modified-Since": date}):
            async with proxy.http.get(url, headers=condition) as answer:
                after = await answer.read()
                assert answer.headers["Last-Modified"] == date
                assert answer.headers["ETag"] != etag
                assert answer.status == 200
                assert len(after) == len(before)
                assert after != before
        async with proxy.http.get(url, headers={"Range": "bytes=100000-", "If-Range": etag}) as answer:
            assert answer.status == 200
