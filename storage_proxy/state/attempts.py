"""The retry loop of every engine: run the function, commit, and run it again after a conflict, within bounds.

The law: bounded in attempts and in time; an attempt is ended on every path, cancellation included.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from storage_proxy.common.errors import StateUnavailable
from storage_proxy.state.port import AttemptFailed, TransactionTooOld
from storage_proxy.state.transaction import BoundedTransaction

_T = TypeVar("_T")
_Attempt = TypeVar("_Attempt", bound=BoundedTransaction)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long one `transact` may try: this many attempts, this many seconds for all of them."""

    attempts: int = 100
    deadline_seconds: float = 10.0


class TooOld(AttemptFailed):
    """The attempt took longer than a transaction may."""


async def run(
    fn: Callable[[_Attempt], Awaitable[_T]],
    *,
    begin: Callable[[], _Attempt],
    recover: Callable[[AttemptFailed, int], Awaitable[None]],
    policy: RetryPolicy,
) -> _T:
    """What ``fn`` returns from the attempt that is committed.

    ``begin`` makes an attempt; ``recover`` waits after the n-th failed one (from 0), or raises what the port promises
    when another cannot help.
    """
    failure: AttemptFailed | None = None
    try:
        async with asyncio.timeout(policy.deadline_seconds) as deadline:
            for number in range(policy.attempts):
                if failure is not None:
                    await recover(failure, number - 1)
                try:
                    return await _attempt(begin(), fn)
                except AttemptFailed as error:
                    failure = error
    except TimeoutError as error:
        if not deadline.expired():
            raise  # of fn's own
        raise _gave_up(failure, f"in {policy.deadline_seconds:g} s") from (failure or error)
    raise _gave_up(failure, f"in {policy.attempts} attempts") from failure


async def _attempt(attempt: _Attempt, fn: Callable[[_Attempt], Awaitable[_T]]) -> _T:
    try:
        try:
            result = await fn(attempt)
        except Exception as error:
            if attempt.failure is not None and attempt.failure is not error:
                raise attempt.failure from error  # perhaps wrapped, in an ExceptionGroup for one
            raise
        await attempt.commit()
        return result
    finally:
        attempt.end()


def _gave_up(failure: AttemptFailed | None, bound: str) -> StateUnavailable:
    if isinstance(failure, TooOld):
        return TransactionTooOld(f"A transaction took too long for the state store, again and again, {bound}")
    reason = f": {failure}" if failure is not None and str(failure) else ""
    return StateUnavailable(f"The state store did not complete a transaction {bound}{reason}")
