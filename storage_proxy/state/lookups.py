"""Many rows of one table at once.

The law: as if each key were read by itself, in far fewer reads where the keys lie close together.
"""

from collections.abc import Collection
from typing import TypeVar

from storage_proxy.common.concurrency import map_bounded
from storage_proxy.state.keys import Element, after
from storage_proxy.state.port import Transaction
from storage_proxy.state.records import Record, Table

_Record = TypeVar("_Record", bound=Record)
_Key = TypeVar("_Key", bound=tuple[Element, ...])
_PARALLEL = 64


async def get_many(transaction: Transaction, table: Table[_Record], keys: Collection[_Key]) -> dict[_Key, _Record]:
    """Those of ``keys`` that have a row, at most 1,000 at once: more may take longer than a transaction has."""
    wanted = {table.key(*key): key for key in keys}
    if not wanted:
        return {}
    ordered = sorted(wanted)
    # Usually nothing lies between them (blobs of one run), or nothing at all (tombstones): one read decides.
    limit = 2 * len(ordered)
    rows = await transaction.get_range(ordered[0], after(ordered[-1]), limit=limit)
    found = {wanted[row[0]]: table.value(row) for row in rows if row[0] in wanted}
    if len(rows) < limit:
        return found
    undecided = [wanted[key] for key in ordered if key > rows[-1][0]]
    singly = await map_bounded(_PARALLEL, lambda key: table.get(transaction, *key), undecided)
    return found | {key: record for key, record in zip(undecided, singly, strict=True) if record is not None}
