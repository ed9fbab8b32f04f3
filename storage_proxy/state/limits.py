"""FoundationDB's limits, the same on every engine, and how close a transaction is to them.

The law: what is counted here is never less than what FoundationDB counts, so that a transaction which passes is never
refused by the cluster (error 2101). Sources: "Known Limitations" of its documentation, and its client, which adds up
mutations and conflict ranges with the size of their structures.
"""

from storage_proxy.common.errors import Internal

MAX_KEY_BYTES = 10_000
MAX_VALUE_BYTES = 100_000
MAX_TRANSACTION_BYTES = 10_000_000
MAX_TRANSACTION_SECONDS = 5.0

FIRST_KEY = b""
END_OF_KEYS = b"\xff"

# Above the size of the structures in the client: 28 to 48 bytes a mutation, 24 a range.
_MUTATION = 64
_RANGE = 32


class LimitExceeded(Internal):
    """A transaction that no engine can take, at whatever time: a defect of whoever wrote it."""


class KeyTooLarge(LimitExceeded):
    """A key of more than 10,000 bytes."""


class KeyReserved(LimitExceeded):
    """A key that begins with 0xff: FoundationDB's own."""


class ValueTooLarge(LimitExceeded):
    """A value of more than 100,000 bytes."""


class TransactionTooLarge(LimitExceeded):
    """A transaction of more than 10,000,000 bytes, as `Transaction.size` counts."""


class TransactionFinished(Internal):
    """A transaction was used after its function had returned, or during its commit."""


def check_key(key: bytes) -> None:
    if len(key) > MAX_KEY_BYTES:
        raise KeyTooLarge(f"A key of {len(key)} bytes is over the limit of {MAX_KEY_BYTES}")
    if key >= END_OF_KEYS:
        raise KeyReserved("A key that begins with 0xff is reserved")


def check_value(value: bytes) -> None:
    if len(value) > MAX_VALUE_BYTES:
        raise ValueTooLarge(f"A value of {len(value)} bytes is over the limit of {MAX_VALUE_BYTES}")


def check_bounds(begin: bytes, end: bytes) -> None:
    """A bound may be the successor of the longest key, and the end of all keys."""
    for bound in (begin, end):
        if len(bound) > MAX_KEY_BYTES + 1:
            raise KeyTooLarge(f"A bound of {len(bound)} bytes is over the limit of {MAX_KEY_BYTES + 1}")
        if bound > END_OF_KEYS:
            raise KeyReserved("A range beyond 0xff is reserved")


def check_size(size: int) -> None:
    if size > MAX_TRANSACTION_BYTES:
        raise TransactionTooLarge(f"A transaction of {size} bytes is over the limit of {MAX_TRANSACTION_BYTES}")


def set_size(key: bytes, value: bytes) -> int:
    """The mutation, its write conflict range, and the read conflict range that it may cut in two."""
    return _MUTATION + len(key) + len(value) + 2 * (range_size(key, key) + 1)


def clear_size(begin: bytes, end: bytes) -> int:
    return _MUTATION + len(begin) + len(end) + 2 * range_size(begin, end)


def range_size(begin: bytes, end: bytes) -> int:
    return _RANGE + len(begin) + len(end)
