"""How long to wait after failures in a row: doubling, bounded, with jitter."""

import random
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses from ``first`` to ``longest`` seconds; each is shortened by up to a half, so that nobody meets."""

    first: float = 0.1
    longest: float = 10.0
    jitter: random.Random = field(default_factory=random.SystemRandom)

    def pause(self, failures: int) -> float:
        """Seconds to wait after the n-th failure in a row, from 1."""
        exponent = min(failures - 1, 32)
        return min(self.longest, self.first * 2.0**exponent) * self.jitter.uniform(0.5, 1)
