import struct
from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from storage_proxy.formats.entries import (
    ENCODED_HEADER_LENGTH,
    MAX_BLOCK_BYTES,
    MAX_BLOCK_ENTRIES,
    MAX_ENCODED_LENGTH,
    MAX_SIZE,
    MAX_TEXT_BYTES,
    Entry,
    EntryBlock,
    EntryBlockBuilder,
)

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
KEYS = st.one_of(NAMES, st.binary(max_size=12).map(lambda raw: raw.decode("utf-8", "surrogateescape")))


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    name = draw(NAMES)
    size = 0 if name.endswith("/") else draw(st.one_of(st.just(0), st.integers(0, MAX_SIZE)))
    crcs = st.none() | st.integers(0, 0xFFFFFFFF)
    return Entry(
        name=name,
        bucket=draw(st.sampled_from(["media", "default", "b"])),
        key=draw(KEYS),
        size=size,
        etag=draw(st.sampled_from(["", '"0123456789abcdef"', '"é"'])),
        last_modified=draw(st.integers(-MAX_SIZE, MAX_SIZE)),
        crc32=draw(crcs) if size else 0,
    )


def entry(**changes: object) -> Entry:
    plain = Entry("a/b.bin", "media", "runs/1/b.bin", 3, '"e"', 1_700_000_000, 7)
    return plain._replace(**changes)  # type: ignore[arg-type]


def blocks_of(items: Iterable[Entry], max_entries: int = 1024, max_bytes: int = MAX_BLOCK_BYTES) -> list[EntryBlock]:
    builder = EntryBlockBuilder(max_entries=max_entries, max_bytes=max_bytes)
    complete = [*map(builder.add, items), builder.finish()]
    return [block for block in complete if block is not None]


@given(st.lists(entries(), min_size=1, max_size=20), st.integers(1, 5), st.integers(1, 200))
def test_blocks_hold_the_entries_in_order_within_their_limits(
    items: list[Entry], max_entries: int, max_bytes: int
) -> None:
    blocks = blocks_of(items, max_entries, max_bytes)
    assert [item for block in blocks for item in block] == items
    for block in blocks:
        assert 1 <= len(block) <= max_entries
        texts = {text for item in block for text in [item.bucket]}
        text_bytes = sum(
            len(text.encode("utf-8", "surrogateescape"))
            for text in [*texts, *(text for item in block for text in (item.name, item.key, item.etag))]
        )
        assert text_bytes <= max_bytes or len(block) == 1


@given(st.lists(entries(), min_size=1, max_size=20))
def test_a_block_decodes_to_itself(items: list[Entry]) -> None:
    (block,) = blocks_of(items)
    encoded = block.encode()
    again = EntryBlock.decode(encoded)
    assert again == block
    assert hash(again) == hash(block)
    assert list(again) == items
    assert again.encode() == encoded
    assert EntryBlock.encoded_length(encoded[:ENCODED_HEADER_LENGTH]) == len(encoded)
    assert again.unknown_crcs == sum(item.crc32 is None for item in items)


def test_the_encoding_never_changes() -> None:
    (block,) = blocks_of([entry(), entry(name="é/", key="\udcff", size=0, etag="", bucket="b", last_modified=-2)])
    assert block.encode().hex() == (
        "45424c31"  # magic
        "7a000000"  # length
        "02000200"  # entries, buckets
        "060000000a0000000d00000003000000"  # bytes of bucket, name, key and etag text
        "03000000000000000000000000000000"  # sizes
        "00f1536500000000feffffffffffffff"  # last modified
        "0700000000000000"  # crc32
        "0101"  # crc32 is known
        "00000100"  # bucket
        "05000100"  # lengths: buckets
        "07000300"  # names
        "0c000100"  # keys
        "03000000" + b"mediab".hex() + "a/b.biné/".encode().hex() + b"runs/1/b.bin\xff".hex() + b'"e"'.hex()  # etags
    )


@given(st.lists(entries(), min_size=1, max_size=4), st.data())
def test_mutated_bytes_decode_to_a_block_or_raise_value_error(items: list[Entry], data: st.DataObject) -> None:
    (block,) = blocks_of(items)
    encoded = bytearray(block.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    mutated = bytes(encoded[: data.draw(st.sampled_from([None, len(encoded) - 1, len(encoded) // 2]))])
    try:
        decoded = EntryBlock.decode(mutated)
    except ValueError:
        return
    assert decoded.encode() == mutated
    assert blocks_of(decoded) == [decoded]


@given(st.binary(max_size=200))
@example(b"")
@example(b"EBL1" + b"\xff" * 24)
@example(struct.pack("<4sL2H4L", b"EBL1", 28, 0, 0, 0, 0, 0, 0))
def test_foreign_bytes_are_refused(junk: bytes) -> None:
    with pytest.raises(ValueError):
        EntryBlock.decode(junk)


def test_encodings_that_are_not_canonical_are_refused() -> None:
    (block,) = blocks_of([entry(), entry(bucket="b", crc32=None)])
    encoded = block.encode()
    crcs = ENCODED_HEADER_LENGTH + 2 * 16
    known = crcs + 2 * 4
    for position, value in [
        (crcs + 4, 1),  # a CRC-32 that is not known and not zero
        (known, 2),  # a truth that is neither
        (known + 2, 1),  # buckets out of order
        (known + 4, 0),  # a bucket that nobody uses
        (known + 2, 9),  # a bucket that is not there
    ]:
        assert encoded[position] != value
        with pytest.raises(ValueError):
            EntryBlock.decode(encoded[:position] + bytes([value]) + encoded[position + 1 :])
    for name in (b"a/b.bi/", b"a/b.bi\xff"):  # a folder with content; not UTF-8
        with pytest.raises(ValueError):
            EntryBlock.decode(encoded.replace(b"a/b.bin", name))
    with pytest.raises(ValueError, match="another length"):
        EntryBlock.decode(encoded + b"\0")


def test_an_empty_blob_has_a_known_crc() -> None:
    (block,) = blocks_of([entry(size=0, crc32=None), entry(size=0, crc32=5)])
    assert [item.crc32 for item in block] == [0, 0]
    assert block.unknown_crcs == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "\udcff"},
        {"name": "n" * (MAX_TEXT_BYTES + 1)},
        {"key": "k" * (MAX_TEXT_BYTES + 1)},
        {"key": "\ud800"},
        {"name": "folder/", "size": 1},
        {"size": -1},
        {"size": MAX_SIZE + 1},
        {"crc32": -1},
        {"crc32": 1 << 32},
        {"last_modified": MAX_SIZE + 1},
    ],
)
def test_an_entry_that_no_archive_can_hold_is_refused_and_leaves_no_trace(wrong: dict[str, object]) -> None:
    builder = EntryBlockBuilder()
    builder.add(entry())
    with pytest.raises(ValueError):
        builder.add(entry(**wrong))
    assert builder.finish() == blocks_of([entry()])[0]
    assert builder.finish() is None


@pytest.mark.parametrize("limits", [{"max_entries": 0}, {"max_entries": 1025}, {"max_bytes": 0}])
def test_limits_that_decode_would_refuse_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        EntryBlockBuilder(**limits)


def test_the_largest_entry_and_the_fullest_block_decode() -> None:
    text = "x" * MAX_TEXT_BYTES
    largest = entry(name=text, key=text, etag=text, bucket=text)
    items = [largest, *(entry(name=f"{row:05}") for row in range(MAX_BLOCK_ENTRIES)), largest]
    blocks = blocks_of(items)
    assert [len(block) for block in blocks] == [1, MAX_BLOCK_ENTRIES, 1]
    for block in blocks:
        assert len(block.encode()) <= MAX_ENCODED_LENGTH
        assert EntryBlock.decode(block.encode()) == block


def test_a_typical_entry_takes_under_400_bytes() -> None:
    items = [entry(name=f"{row:040}", key=f"{row:060}", etag=f'"{row:032}"', size=10_000 + row) for row in range(5000)]
    blocks = blocks_of(items)
    assert sum(block.nbytes for block in blocks) < 400 * len(items)


def test_rows_outside_of_the_block_are_index_errors() -> None:
    (block,) = blocks_of([entry()])
    for row in (-1, 1):
        with pytest.raises(IndexError):
            block[row]
