"""A FoundationDB cluster in memory: versions, a resolver, storage that forgets old versions, and faults on request.

The law: it decides as the real one does. A commit conflicts when a range that it read was written after its read
version, or is too old when that is more than 5 s of versions ago; a read is too old only once later commits have made
the storage forget its version.
"""

import threading
from bisect import bisect_left, insort
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random

Range = tuple[bytes, bytes]
Mutation = tuple[bytes, bytes, bytes | None]
"""``begin, end, value``: a key's range and its value, or a range to clear and None."""

VERSIONS_A_SECOND = 1_000_000
RECOVERY_VERSIONS = 100 * VERSIONS_A_SECOND
LIFETIME = 5 * VERSIONS_A_SECOND

COMMIT_UNKNOWN = 1021


class ClusterError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True)
class Fault:
    """An error in place of an answer; ``committed`` is what became of a commit that is answered with 1021."""

    code: int
    committed: bool = False


@dataclass
class Faults:
    """Errors for the next requests of a kind (``get``, ``range``, ``version``, ``commit``), or for some at random.

    At random, a commit that was made is answered with 1021 only where ``unknown_commits`` says so.
    """

    scripted: dict[str, deque[Fault]] = field(default_factory=lambda: defaultdict(deque))
    rate: float = 0.0
    unknown_commits: bool = True
    random: Random = field(default_factory=lambda: Random(0))

    def script(self, kind: str, *codes: int, committed: bool = False) -> None:
        self.scripted[kind].extend(Fault(code, committed) for code in codes)

    def unknown(self) -> Fault:
        """For a commit that was under way when its server was killed."""
        return Fault(COMMIT_UNKNOWN, self.unknown_commits and self.random.random() < 0.5)

    def next(self, kind: str) -> Fault | None:
        if self.scripted[kind]:
            return self.scripted[kind].popleft()
        if self.random.random() >= self.rate:
            return None
        if kind == "commit":
            return self.random.choice([Fault(1020), Fault(1007), self.unknown(), self.unknown()])
        return Fault(1007)


@dataclass(frozen=True)
class _Commit:
    version: int
    writes: tuple[Range, ...]


class FakeCluster:
    """One ordered map with its history. Safe for any number of client threads.

    ``clock`` says how far versions have come, in seconds. ``reachable`` False leaves every request unanswered, until
    it is True again; `kill` does that to a server that works.
    """

    def __init__(self, clock: Callable[[], float], *, seed: int = 0) -> None:
        self.faults = Faults(random=Random(seed))
        self.commits_made = 0
        self.lives = 0
        self._reachable = True
        self._clients: list[Callable[[], None]] = []
        self._clock = clock
        self._lock = threading.RLock()
        self._version = 1
        self._keys: list[bytes] = []
        self._values: dict[bytes, list[tuple[int, bytes | None]]] = {}
        self._commits: list[_Commit] = []

    @property
    def reachable(self) -> bool:
        return self._reachable

    @reachable.setter
    def reachable(self, reachable: bool) -> None:
        self._reachable = reachable
        for wake in self._clients:
            wake()

    def connect(self, wake: Callable[[], None]) -> None:
        """Have a client called when the cluster can be reached, or cannot any more."""
        self._clients.append(wake)

    def kill(self) -> None:
        """End the server: what is under way is never answered by it, and of each commit nobody knows."""
        with self._lock:
            self.lives += 1
        self.reachable = False

    def restart(self) -> None:
        """Recover: all that was committed is there, and every version from before is too old to be read."""
        with self._lock:
            self._version = self.read_version() + RECOVERY_VERSIONS
        self.reachable = True

    def read_version(self) -> int:
        with self._lock:
            return max(self._version, int(self._clock() * VERSIONS_A_SECOND))

    def get(self, key: bytes, version: int) -> bytes | None:
        with self._lock:
            self._check_remembered(version)
            return self._at(key, version)

    def rows(self, begin: bytes, end: bytes, version: int) -> dict[bytes, bytes]:
        with self._lock:
            self._check_remembered(version)
            keys = self._keys[bisect_left(self._keys, begin) : bisect_left(self._keys, end)]
            return {key: value for key in keys if (value := self._at(key, version)) is not None}

    def commit(self, version: int, reads: Iterable[Range], writes: Iterable[Range], changes: Sequence[Mutation]) -> int:
        """The version at which ``changes`` are applied; 1020 or 1007."""
        with self._lock:
            made = self.read_version() + 1
            reads = tuple(reads)
            if reads and version < made - LIFETIME:
                raise ClusterError(1007)
            for commit in reversed(self._commits):
                if commit.version <= version:
                    break
                if any(begin < e and b < end for b, e in commit.writes for begin, end in reads):
                    raise ClusterError(1020)
            for begin, end, value in changes:
                self._apply(made, begin, end, value)
            self._version = made
            self._commits.append(_Commit(made, tuple(writes)))
            self.commits_made += 1
            return made

    def _apply(self, version: int, begin: bytes, end: bytes, value: bytes | None) -> None:
        if value is not None:
            if begin not in self._values:
                insort(self._keys, begin)
            self._values.setdefault(begin, []).append((version, value))
            return
        for key in self._keys[bisect_left(self._keys, begin) : bisect_left(self._keys, end)]:
            self._values[key].append((version, None))

    def _at(self, key: bytes, version: int) -> bytes | None:
        return next((value for made, value in reversed(self._values.get(key, ())) if made <= version), None)

    def _check_remembered(self, version: int) -> None:
        if version < self._version - LIFETIME:
            raise ClusterError(1007)
