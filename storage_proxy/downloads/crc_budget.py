"""How much may be read at mint to learn CRC-32s: a number of bytes and a deadline."""

import time
from collections.abc import Callable


class CrcBudget:
    """Bytes that may still be read, until a moment. ``clock`` gives monotonic seconds."""

    def __init__(self, *, max_bytes: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._bytes = max_bytes
        self._clock = clock
        self._deadline = clock() + seconds

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline, 0 when it has passed."""
        return max(0.0, self._deadline - self._clock())

    def take(self, size: int) -> bool:
        """Reserve ``size`` bytes; False when they, or the time, are used up."""
        if size > self._bytes or not self.seconds_left:
            return False
        self._bytes -= size
        return True
