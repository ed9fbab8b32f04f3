"""The work on a partition, on a feed that a test writes: what is given, what is committed, and when it ends."""

import asyncio
import logging
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_proxy.bus.observer import NoObserver
from storage_proxy.bus.partitions import Consumption, PartitionLost, PartitionTasks
from storage_proxy.bus.port import Batch, Handler, Message
from storage_proxy.common.errors import BusUnavailable, StorageUnavailable
from storage_proxy.common.pauses import PausePolicy, Pauses

AT_ONCE = PausePolicy(0, 0)


def batches(sizes: Sequence[int]) -> list[Batch]:
    """Batches of such sizes; offsets grow, not always by one."""
    made, offset = [], 0
    for size in sizes:
        messages = []
        for _ in range(size):
            offset += 1 + offset % 3
            messages.append(Message("topic", 0, offset, b"key", b"%d" % offset, 0.0))
        made.append(Batch("topic", 0, messages))
    return made


class ScriptedFeed:
    """Gives batches, then waits; commits fail as scripted: "away" or "cancelled" once each, or "lost"."""

    def __init__(self, given: Sequence[Batch], failures: Sequence[str] = ()) -> None:
        self._given = list(given)
        self._failures = list(failures)
        self.committed: list[int] = []
        self.exhausted = asyncio.Event()

    async def next_batch(self, partition: int) -> Batch:
        if not self._given:
            self.exhausted.set()
            await asyncio.Event().wait()
        return self._given.pop(0)

    async def commit(self, partition: int, offset: int) -> None:
        if self._failures:
            failure = self._failures.pop(0)
            if failure == "lost":
                raise PartitionLost
            if failure == "away":
                raise BusUnavailable
            if failure == "cancelled":
                raise asyncio.CancelledError
        self.committed.append(offset)


def tasks(handler: Handler, feed: ScriptedFeed) -> PartitionTasks:
    return PartitionTasks(Consumption("topic", "group", handler, AT_ONCE, NoObserver(), random.Random(1)), feed)


@given(
    sizes=st.lists(st.integers(1, 6), max_size=5),
    script=st.lists(st.one_of(st.integers(0, 6), st.sampled_from(["refused", "broken", "cancelled"])), max_size=12),
    failures=st.lists(st.sampled_from(["away", "cancelled", "well"]), max_size=6),
)
def test_each_message_is_done_once_in_order_and_commits_follow_it(
    sizes: list[int], script: list[int | str], failures: list[str]
) -> None:
    todo = list(script)
    done: list[int] = []

    async def handle(batch: Batch) -> int:
        step = todo.pop(0) if todo else len(batch.messages)
        if step == "refused":
            raise StorageUnavailable
        if step == "broken":
            raise ZeroDivisionError
        if step == "cancelled":  # what the handler waited for, not the handler
            raise asyncio.CancelledError
        assert isinstance(step, int)
        if step <= len(batch.messages):  # else it claims too much, and none of it is believed
            done.extend(message.offset for message in batch.messages[:step])
        return step

    async def run() -> ScriptedFeed:
        feed = ScriptedFeed(batches(sizes), failures)
        running = tasks(handle, feed)
        running.start(0)
        async with asyncio.timeout(10):
            await feed.exhausted.wait()
        await running.aclose()
        return feed

    logging.disable(logging.CRITICAL)
    try:
        feed = asyncio.run(run())
    finally:
        logging.disable(logging.NOTSET)
    offsets = [message.offset for batch in batches(sizes) for message in batch.messages]
    assert done == offsets
    assert feed.committed == sorted(feed.committed)
    assert set(feed.committed) <= {offset + 1 for offset in offsets}
    assert feed.committed[-1:] == [offset + 1 for offset in offsets[-1:]]


async def test_a_partition_that_is_lost_ends_without_another_try(caplog: pytest.LogCaptureFixture) -> None:
    calls = 0

    async def handle(batch: Batch) -> int:
        nonlocal calls
        calls += 1
        return len(batch.messages)

    feed = ScriptedFeed(batches([2, 2]), ["lost"])
    running = tasks(handle, feed)
    running.start(0)
    (task,) = running._tasks.values()
    await asyncio.wait({task}, timeout=10)
    assert calls == 1
    assert feed.committed == []
    await running.aclose()


async def test_a_cancelled_handler_is_awaited_and_its_batch_is_not_committed() -> None:
    entered, ended = asyncio.Event(), asyncio.Event()

    async def handle(batch: Batch) -> int:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.set()
        return len(batch.messages)

    feed = ScriptedFeed(batches([2]))
    running = tasks(handle, feed)
    running.start(0)
    await entered.wait()
    await running.stop([0])
    assert ended.is_set()
    assert feed.committed == []
    assert running.partitions == frozenset()


async def test_a_commit_that_had_begun_is_finished_before_the_partition_is_given_up() -> None:
    committing, go_on = asyncio.Event(), asyncio.Event()

    class SlowFeed(ScriptedFeed):
        async def commit(self, partition: int, offset: int) -> None:
            committing.set()
            await go_on.wait()
            await super().commit(partition, offset)

    async def handle(batch: Batch) -> int:
        return len(batch.messages)

    feed = SlowFeed(batches([2]))
    running = tasks(handle, feed)
    running.start(0)
    await committing.wait()
    stopping = asyncio.create_task(running.stop([0]))
    await asyncio.sleep(0)
    go_on.set()
    await stopping
    assert len(feed.committed) == 1


async def test_a_failure_is_logged_by_its_code_and_a_defect_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures: list[Exception] = [StorageUnavailable("S3 is away"), ZeroDivisionError("a defect")]

    async def handle(batch: Batch) -> int:
        if failures:
            raise failures.pop(0)
        return len(batch.messages)

    feed = ScriptedFeed(batches([1]))
    running = tasks(handle, feed)
    running.start(0)
    await feed.exhausted.wait()
    await running.aclose()
    known, unknown = caplog.records
    assert known.levelno == logging.WARNING
    assert known.exc_info is None
    assert "storage-unavailable" in known.getMessage()
    assert unknown.levelno == logging.ERROR
    assert unknown.exc_info is not None


@given(first=st.floats(0.001, 10), longest=st.floats(0.001, 100), tries=st.integers(1, 30))
def test_pauses_grow_to_the_longest_and_no_further(first: float, longest: float, tries: int) -> None:
    pauses = Pauses(PausePolicy(first, max(first, longest)), random.Random(1))
    bound = first
    for _ in range(tries):
        assert bound / 2 <= pauses.next() <= bound
        bound = min(2 * bound, max(first, longest))
    pauses.reset()
    assert pauses.next() <= first
