"""How often our own requests to S3 are tried, and the pauses between: the same for every operation.

The law: as many attempts as the options say; the deadline over all of them is the caller's.
"""

from collections.abc import Callable, Iterator

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0


def attempts(count: int, jitter: Callable[[], float]) -> Iterator[tuple[bool, float]]:
    """For each attempt whether it is the last one, and else how many seconds to wait when it has failed.

    ``jitter`` gives a factor from 0 to 1 for each pause.
    """
    pause = _FIRST_PAUSE
    for left in reversed(range(count)):
        yield not left, pause * jitter()
        pause = min(pause * 2, _LONGEST_PAUSE)
