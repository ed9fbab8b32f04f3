"""Jobs: what an operator, or a timer, has done once in a while, one process at a time.

The law: a job holds its lock and checks its fence in the transaction of everything that it decides; it counts as it
goes, stops at its limit, and changes nothing in a dry run.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from storage_proxy.lifecycle.locks import HeldLock, Locks
from storage_proxy.state.port import KeyValueStore, Transaction


@dataclass(frozen=True, slots=True)
class JobProgress:
    """How far a job is: things looked at, found to be removed, and removed. ``names`` are those found since the last
    report, for people."""

    looked_at: int
    found: int
    removed: int
    names: Sequence[str] = ()


Report = Callable[[JobProgress], None]


@dataclass(slots=True)
class Tally:
    """What a run of a job may do, and has done. ``limit`` bounds what is found, None does not."""

    dry_run: bool = False
    limit: int | None = None
    report: Report = lambda _: None
    looked_at: int = 0
    found: int = 0
    removed: int = 0
    _names: list[str] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        return self.limit is not None and self.found >= self.limit

    @property
    def room(self) -> int | None:
        """How many more may be found."""
        return None if self.limit is None else self.limit - self.found

    def look_at(self, count: int) -> None:
        self.looked_at += count

    def find(self, names: Sequence[str]) -> None:
        """These are to be removed: at most as many as there is room for."""
        self.found += len(names)
        self._names += names

    def remove(self, count: int) -> None:
        self.removed += count

    def tell(self) -> None:
        """Report what there is to report."""
        self.report(self.progress(self._names))
        self._names = []

    def progress(self, names: Sequence[str] = ()) -> JobProgress:
        return JobProgress(self.looked_at, self.found, self.removed, tuple(names))


def portions(keys: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """``keys`` in their order, at most ``size`` at once."""
    for start in range(0, len(keys), size):
        yield keys[start : start + size]


class Job(Protocol):
    """One kind of clean-up. Begun again after it was killed at any point, it goes on with what is left."""

    @property
    def name(self) -> str:
        """What the command line calls it."""
        ...

    async def run(self, lock: HeldLock, tally: Tally) -> None:
        """Do it within ``tally``. Raises `LockLost`, and as the stores, the state and the bus do."""
        ...


async def run_job(
    job: Job,
    locks: Locks,
    owner: str,
    *,
    dry_run: bool = False,
    limit: int | None = None,
    report: Report = lambda _: None,
) -> JobProgress:
    """Run ``job`` under its lock, and tell what it has done. ``limit`` bounds how many things it removes.

    ``report`` hears of each step. Raises `LockHeld` when another instance runs, `LockLost` when this one was paused
    for too long, and as the job does.
    """
    tally = Tally(dry_run, limit, report)
    async with locks.hold(f"job:{job.name}", owner) as lock:
        await job.run(lock, tally)
    return tally.progress()


async def check_fence(store: KeyValueStore, lock: HeldLock) -> None:
    """Raise `LockLost` unless the lock is held now: for what a transaction cannot hold together."""

    async def fn(transaction: Transaction) -> None:
        await lock.check(transaction)

    await store.transact(fn)
