"""Pauses between tries: each about twice the one before, up to a longest one, with jitter.

The law: what fails again and again is tried for ever, and ever more rarely, up to once in the longest pause.
"""

import asyncio
import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PausePolicy:
    """The bounds of pauses, in seconds."""

    first: float = 0.5
    longest: float = 30.0


class Pauses:
    """The pauses of one thing that is tried."""

    def __init__(self, policy: PausePolicy, jitter: random.Random) -> None:
        self._policy = policy
        self._jitter = jitter
        self._next = policy.first

    def next(self) -> float:
        """The length of the next pause: half of the bound to all of it."""
        bound = self._next
        self._next = min(2 * bound, self._policy.longest)
        return self._jitter.uniform(bound / 2, bound)

    async def wait(self) -> None:
        await asyncio.sleep(self.next())

    def reset(self) -> None:
        """Begin with the first pause again: something has come of the last try."""
        self._next = self._policy.first
