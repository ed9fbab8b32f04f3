"""What stands in for the FoundationDB client's futures and its network thread.

The law: a future becomes ready once, in the network thread and in any order; looking at one that is not ready fails the
test, as it would block the event loop.
"""

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from random import Random
from typing import Any

from tests.support.fake_fdb_cluster import FakeCluster


class FDBError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class FakeFuture:
    """Ready once; nobody may look before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[Any], None]] = []
        self._ready = False
        self._result: Any = None
        self._error: int | None = None

    def is_ready(self) -> bool:
        return self._ready

    def on_ready(self, callback: Callable[[Any], None]) -> None:
        with self._lock:
            if not self._ready:
                self._callbacks.append(callback)
                return
        callback(self)

    def wait(self) -> Any:
        assert self._ready, "a wait for a future that is not ready blocks the event loop"
        if self._error is not None:
            raise FDBError(self._error)
        return self._result

    def cancel(self) -> None:
        self.resolve(error=1101)

    def resolve(self, result: Any = None, error: int | None = None) -> None:
        with self._lock:
            if self._ready:
                return
            self._ready, self._result, self._error = True, result, error
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)


class FakeValue(FakeFuture):
    """Lazy: its truth, hash and comparison are the value's, and wait for it."""

    def wait(self) -> Any:
        super().wait()
        return self

    @property
    def value(self) -> Any:
        return super().wait()

    def present(self) -> bool:
        return self.value is not None

    def __hash__(self) -> int:
        return hash(self.value)

    def __eq__(self, other: object) -> bool:
        return bool(self.value == other)


class Network:
    """The thread that answers, in an order of its own."""

    def __init__(self, cluster: FakeCluster, seed: int) -> None:
        self.errors: list[BaseException] = []
        self._cluster = cluster
        self._random = Random(seed)
        self._condition = threading.Condition()
        self._requests: list[Callable[[], None]] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._stopped = False
        cluster.connect(self.wake)
        self._thread = threading.Thread(target=self._run, name="fdb-network-thread", daemon=True)
        self._thread.start()

    def request(self, work: Callable[[], None]) -> None:
        with self._condition:
            self._requests.append(work)
            self._condition.notify()

    def later(self, seconds: float, work: Callable[[], None]) -> None:
        with self._condition:
            heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), work))
            self._condition.notify()

    def wake(self) -> None:
        with self._condition:
            self._condition.notify()

    def stop(self) -> None:
        with self._condition:
            self._stopped = True
            self._condition.notify()
        self._thread.join()

    def _run(self) -> None:
        while (work := self._next()) is not None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 the test looks at them
                self.errors.append(error)

    def _next(self) -> Callable[[], None] | None:
        with self._condition:
            while not self._stopped:
                now = time.monotonic()
                if self._timers and self._timers[0][0] <= now:
                    return heapq.heappop(self._timers)[2]
                if self._requests and self._cluster.reachable:
                    return self._requests.pop(self._random.randrange(len(self._requests)))
                self._condition.wait(self._timers[0][0] - now if self._timers else None)
            return None
