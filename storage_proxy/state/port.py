"""The KeyValueStore port: ordered keys and serialisable transactions, with FoundationDB's semantics.

The law: whoever writes a transaction writes it as if FoundationDB ran it. Its function may run more than once, a
commit whose outcome is not known is run again, and no transaction is longer or larger than the limits.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from storage_proxy.common.errors import StateUnavailable

_T = TypeVar("_T")

Row = tuple[bytes, bytes]
"""A key and its value."""


class AttemptFailed(Exception):
    """This run of a transaction's function cannot commit; the engine discards it and may run the function again.

    It passes through the function on its way to the engine. Catching it changes nothing: the attempt stays failed.
    """


class TransactionTooOld(StateUnavailable):
    """Each attempt took longer than a transaction may: 5 s from its first read to its commit."""


class Transaction(Protocol):
    """One attempt: a snapshot of the whole store as of its first read, with its own writes on top.

    Good only within the function that it was given to; used later, it raises `TransactionFinished`. Its methods may
    be called by several tasks of that function at once, as long as all of them end before the function does.

    Keys are 0 to 10,000 bytes (`KeyTooLarge`) and do not begin with 0xff (`KeyReserved`); a key that only bounds a
    range may be one byte longer, and may be ``b"\\xff"``. Values are 0 to 100,000 bytes (`ValueTooLarge`). When a
    method has raised, the attempt is never committed, whatever the function does with the exception.
    """

    @property
    def size(self) -> int:
        """Bytes that count towards the 10,000,000 a transaction may have, so far.

        Keys and values written, keys and ranges cleared, and the bounds of everything read count, with a little for
        each: never less than FoundationDB counts. A transaction that only reads has no limit.
        """
        ...

    async def get(self, key: bytes, *, snapshot: bool = False) -> bytes | None:
        """The value of ``key``, None where there is none.

        A read makes the attempt conflict with every transaction that commits a write of the key in the meantime;
        with ``snapshot`` it does not.
        """
        ...

    async def get_many(self, keys: Sequence[bytes], *, snapshot: bool = False) -> Sequence[bytes | None]:
        """What `get` gives for each of ``keys``, in one question: many times cheaper than as many `get`."""
        ...

    async def get_range(
        self, begin: bytes, end: bytes, *, limit: int, reverse: bool = False, snapshot: bool = False
    ) -> Sequence[Row]:
        """The first ``limit`` (at least 1) rows with ``begin <= key < end``, in byte order; the last ones, from the
        last on, with ``reverse``.

        Conflicts with writes, also of keys that were not there, between ``begin`` and the last row given, and with
        all in the range when there are fewer than ``limit`` rows.
        """
        ...

    def get_batches(
        self, begin: bytes, end: bytes, *, reverse: bool = False, snapshot: bool = False
    ) -> AsyncIterator[Sequence[Row]]:
        """All rows of the range, in batches that are not empty; conflicts with what has been read of it.

        Own writes between two batches may be seen by the later one. It is the same snapshot, so the same 5 s.
        """
        ...

    def add_read_conflict_range(self, begin: bytes, end: bytes) -> None:
        """Conflict with writes in the range as if it had been read. For after a snapshot read."""
        ...

    def set(self, key: bytes, value: bytes) -> None:
        """Write one key. Raises `TransactionTooLarge` with the write that is too much, as every write does."""
        ...

    def clear(self, key: bytes) -> None:
        """Remove one key, if it is there."""
        ...

    def clear_range(self, begin: bytes, end: bytes) -> None:
        """Remove all keys with ``begin <= key < end``; ``begin > end`` is a ValueError."""
        ...


class KeyValueStore(Protocol):
    """One ordered map from bytes to bytes. Safe for any number of tasks of one event loop, and of processes.

    Every method raises `StateUnavailable` when the store cannot be reached, is damaged, or is closed, within a
    deadline: no method hangs.
    """

    async def transact(self, fn: Callable[[Transaction], Awaitable[_T]]) -> _T:
        """Run ``fn``, commit what it wrote, and give what it returned: durable, and seen by every later transaction.

        Transactions are serialisable: each committed one saw exactly what the ones before it had left. When another
        one commits a write of something that this one has read, this one is discarded and ``fn`` runs again, on a
        fresh snapshot, after a pause with jitter. So is an attempt older than 5 s. Attempts and the time for all of
        them are bounded; then it is `StateUnavailable`, or `TransactionTooOld` if the last attempt was.

        **``fn`` must be idempotent, in the store and outside of it.** It runs again after a commit of unknown result
        too, so it may find its own writes; a counter that it increments blindly counts twice. A row that names the
        event (an id, an offset) makes it idempotent: find it and return.

        An exception of ``fn`` is raised as it is; nothing is written then. After `StateUnavailable`, and after a
        cancellation during the commit, the last attempt may have been committed, or may be yet, a moment later.
        """
        ...

    def read_snapshot(self, begin: bytes, end: bytes) -> AsyncIterator[Sequence[Row]]:
        """All rows of a range as of one moment, in byte order, in batches: for an export.

        What was yielded before an exception is part of no complete answer. SQLite holds one snapshot for as long as
        the reader takes, while others write. FoundationDB keeps a version for 5 s, which is a few hundred thousand
        rows; a longer read raises `TransactionTooOld`, and whoever exports more has to hold the writers back.
        """
        ...

    async def probe(self) -> None:
        """Return if the store can be read and written to, raise otherwise. Cheap; writes nothing."""
        ...

    async def aclose(self) -> None:
        """Release what the store holds; commits under way are finished or given up. Idempotent."""
        ...
