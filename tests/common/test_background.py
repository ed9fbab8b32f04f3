import asyncio
import logging

import pytest

from storage_proxy.common.errors import StateUnavailable
from storage_proxy.common.service import background
from storage_proxy.common.service.background import in_background


async def test_a_loop_that_fails_is_begun_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(background, "FIRST_PAUSE_SECONDS", 0.001)
    failures = [StateUnavailable("is away"), ValueError("a defect"), asyncio.CancelledError()]
    works = asyncio.Event()

    async def loop() -> None:
        if failures:
            raise failures.pop(0)
        works.set()
        await asyncio.Event().wait()

    with caplog.at_level(logging.WARNING):
        async with in_background({"relay": loop}), asyncio.timeout(10):
            await works.wait()
    assert [record.getMessage() for record in caplog.records] == ["a loop waits", "a loop failed", "a loop failed"]


async def test_leaving_cancels_the_loops_and_waits_for_their_end() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def loop() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.set()

    async with in_background({"loop": loop}):
        await begun.wait()
    assert ended.is_set()
