"""The whole state as a file: for backups, and for moving from one engine to another.

The law: a file is whole or refused, and so is a store that it is read into. Its first line names the format, its last
one counts the rows and has their digest; both are checked before anything is written. It is NDJSON, one row a line:

    {"format": "storage-proxy-state", "version": 1, "exported_at": "2026-11-24T12:00:00Z"}
    {"table": "blob", "key": ["r1", "a/b.bin"], "value": {"v": 1, ...}}
    {"rows": 1, "sha256": "<of the lines between, with their ends>"}

Bytes within a key are ``{"bytes": "<base64>"}``. Locks and claims are not in it: they belong to processes.
"""

import base64
import binascii
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from storage_proxy.common.errors import StateUnavailable
from storage_proxy.common.values import rfc3339
from storage_proxy.state.keys import Element
from storage_proxy.state.limits import MAX_KEY_BYTES, MAX_VALUE_BYTES
from storage_proxy.state.port import KeyValueStore, Row, Transaction
from storage_proxy.state.records import Import, Records, Table

FORMAT = "storage-proxy-state"
VERSION = 1

_OF_PROCESSES = ("lock", "claim")
_MAX_LINE_BYTES = 8 * (MAX_KEY_BYTES + MAX_VALUE_BYTES)  # a byte may take 6 as an escape
_BATCH_ROWS = 1000
_BATCH_BYTES = 1 << 20


class StateFileError(Exception):
    """The file cannot be read in, or not into this store; what it says is for an operator."""


@dataclass(frozen=True, slots=True)
class _Checked:
    """What the first reading of a file has shown."""

    rows: int
    sha256: str


async def export_state(
    store: KeyValueStore, records: Records, path: Path, *, clock: Callable[[], float] = time.time
) -> int:
    """Write the state as of one moment to ``path``, whole or not at all, readable by its owner only; rows written.

    Raises `StateFileError` while an import is unfinished, `TransactionTooOld` when FoundationDB forgets the moment
    (see `KeyValueStore.read_snapshot`), OSError.
    """
    with _replaced(path) as file:
        return await write_state(store, records, file, clock=clock)


async def write_state(
    store: KeyValueStore, records: Records, file: BinaryIO, *, clock: Callable[[], float] = time.time
) -> int:
    """Write the state as of one moment into an open file; rows written. What is cut short has no last line."""
    header = {"format": FORMAT, "version": VERSION, "exported_at": rfc3339(int(clock()))}
    file.write(_line(header))
    digest, count = hashlib.sha256(), 0
    async for batch in store.read_snapshot(*records.root.range()):
        lines = [line for row in batch if (line := _exported(records, row)) is not None]
        for line in lines:
            digest.update(line)
        file.writelines(lines)
        count += len(lines)
    file.write(_line({"rows": count, "sha256": digest.hexdigest()}))
    file.flush()
    return count


async def import_state(store: KeyValueStore, records: Records, path: Path) -> int:
    """Read the state in ``path`` into an empty store; rows read.

    An import that was cut off goes on when it is begun again with the same file; until then the store is marked as
    unfinished. Raises `StateFileError`: the file is not whole, or not of this format; the store has rows, or those of
    another file; OSError.
    """
    tables = _tables(records)
    checked = _check(path, tables)
    await store.transact(partial(_begin, records=records, checked=checked))
    for rows in _batches(path, tables):
        await store.transact(partial(_write, records=records, checked=checked, rows=rows))
    await store.transact(partial(_end, records=records, checked=checked))
    return checked.rows


# Export


def _exported(records: Records, row: Row) -> bytes | None:
    table, *key = records.root.unpack(row[0])
    if table in _OF_PROCESSES:
        return None
    if table == "import":
        raise StateFileError("An import into this store is not finished: it has no whole state to export")
    value = json.loads(row[1].decode("utf-8", "surrogateescape"))
    return _line({"table": table, "key": [_written(element) for element in key], "value": value})


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _written(element: Element) -> Any:
    if isinstance(element, bytes):
        return {"bytes": base64.b64encode(element).decode()}
    return element


@contextmanager
def _replaced(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` when all has been written, durably."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - of a descriptor
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


# Import


def _tables(records: Records) -> dict[str, Table[Any]]:
    """The tables of a file by their names there, which are those of their keys."""
    found: dict[str, Table[Any]] = {}
    for table in vars(records).values():
        if isinstance(table, Table):
            name = records.root.unpack(table.key())[0]
            if name not in (*_OF_PROCESSES, "import"):
                found[str(name)] = table
    return found


def _check(path: Path, tables: dict[str, Table[Any]]) -> _Checked:
    """Read the file once, whole. Raises `StateFileError`."""
    digest, count = hashlib.sha256(), 0
    with path.open("rb") as file:
        header = _parsed(file.readline(_MAX_LINE_BYTES), 1)
        if header.get("format") != FORMAT or header.get("version") != VERSION:
            raise StateFileError(f"The file is no {FORMAT} of version {VERSION}")
        for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE_BYTES), b""), start=2):
            parsed = _parsed(line, number)
            if "rows" in parsed:
                if file.read(1) or parsed != {"rows": count, "sha256": digest.hexdigest()}:
                    raise StateFileError("The file's last line does not agree with the others")
                return _Checked(count, digest.hexdigest())
            _row(parsed, tables, number)
            digest.update(line)
            count += 1
    raise StateFileError("The file is cut short: it has no last line")


def _parsed(line: bytes, number: int) -> dict[str, Any]:
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict) or not line.endswith(b"\n"):
        raise StateFileError(f"Line {number} of the file is no JSON object, or cut short")
    return parsed


def _row(parsed: dict[str, Any], tables: dict[str, Table[Any]], number: int) -> Row:
    """The row of a line; its value is of a version that this one reads."""
    try:
        table = tables[parsed["table"]]
        key = table.key(*(_read(element) for element in parsed["key"]))
        text = json.dumps(parsed["value"], separators=(",", ":"), ensure_ascii=False)
        row = key, text.encode("utf-8", "surrogateescape")
        table.read(row)
    except (KeyError, TypeError, ValueError, StateUnavailable) as error:
        raise StateFileError(f"Line {number} of the file is no row that this version knows") from error
    return row


def _read(element: Any) -> Element:
    if isinstance(element, dict):
        try:
            return base64.b64decode(element["bytes"], validate=True)
        except binascii.Error as error:
            raise ValueError("no base64") from error
    if isinstance(element, (str, int)):
        return element
    raise TypeError("no element of a key")


def _batches(path: Path, tables: dict[str, Table[Any]]) -> Iterator[Sequence[Row]]:
    """The rows of a file that has been checked."""
    rows: list[Row] = []
    size = 0
    with path.open("rb") as file:
        file.readline(_MAX_LINE_BYTES)
        for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE_BYTES), b""), start=2):
            parsed = _parsed(line, number)
            if "rows" in parsed:
                break
            rows.append(_row(parsed, tables, number))
            size += len(line)
            if len(rows) == _BATCH_ROWS or size >= _BATCH_BYTES:
                yield rows
                rows, size = [], 0
    if rows:
        yield rows


async def _begin(transaction: Transaction, records: Records, checked: _Checked) -> None:
    begun = await records.imports.get(transaction)
    if begun is not None:
        if begun.sha256 != checked.sha256:
            raise StateFileError("An import of another file is not finished")
        return
    if await _has_rows(transaction, records):
        raise StateFileError("The store is not empty")
    records.imports.set(transaction, Import(checked.sha256))


async def _has_rows(transaction: Transaction, records: Records) -> bool:
    """Whether there is anything but the locks and claims of processes."""
    async for batch in transaction.get_batches(*records.root.range()):
        if any(records.root.unpack(key)[0] not in _OF_PROCESSES for key, _ in batch):
            return True
    return False


async def _write(transaction: Transaction, records: Records, checked: _Checked, rows: Sequence[Row]) -> None:
    await _check_mark(transaction, records, checked)
    for key, value in rows:
        transaction.set(key, value)


async def _end(transaction: Transaction, records: Records, checked: _Checked) -> None:
    mark = await records.imports.get(transaction)
    if mark is not None and mark.sha256 == checked.sha256:
        records.imports.clear(transaction)


async def _check_mark(transaction: Transaction, records: Records, checked: _Checked) -> None:
    mark = await records.imports.get(transaction)
    if mark is None or mark.sha256 != checked.sha256:
        raise StateFileError("Another import has taken this one's place")
