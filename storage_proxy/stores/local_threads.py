"""A bounded pool of threads for a file system that may block: its callers have deadlines, its threads have not.

The law: a thread that blocks keeps nobody waiting but itself, and what it returns to nobody is discarded.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from storage_proxy.common.errors import StorageUnavailable
from storage_proxy.stores.local_tree import storage_failure

_T = TypeVar("_T")


class Threads:
    """A pool of ``size`` threads, whose work can be given up."""

    def __init__(self, size: int, name: str) -> None:
        self._executor = ThreadPoolExecutor(size, thread_name_prefix=name)

    def submit(self, work: Callable[[], _T]) -> "Future[_T]":
        try:
            return self._executor.submit(work)
        except RuntimeError as error:  # shut down
            raise StorageUnavailable("The bucket is closed") from error

    async def outcome(self, future: "Future[_T]", timeout: float, discard: Callable[[_T], None] | None = None) -> _T:
        """What the work returns, within ``timeout`` seconds; `OSError` and lateness as the port's errors."""
        delivered = False
        try:
            async with asyncio.timeout(timeout):
                result = await asyncio.wrap_future(future)
            delivered = True
        except OSError as error:
            raise storage_failure(error) from error
        finally:
            if discard is not None and not delivered:
                future.add_done_callback(partial(_discard_result, discard))
        return result

    async def run(self, work: Callable[[], _T], timeout: float) -> _T:
        return await self.outcome(self.submit(work), timeout)

    def shut_down(self) -> None:
        self._executor.shutdown(wait=False)


def _discard_result(discard: Callable[[_T], None], future: "Future[_T]") -> None:
    if not future.cancelled() and future.exception() is None:
        discard(future.result())
