"""What aiokafka logs, without its repetitions.

The law: a broker that is away for an hour is told of once a minute, not ten times a second.
"""

import logging
import time
from collections.abc import Callable

_SECONDS = 60.0
_REMEMBERED = 256
# A filter sees the records of its own logger only, not those of the loggers beneath.
_LOGGERS = (
    "aiokafka",
    "aiokafka.cluster",
    "aiokafka.conn",
    "aiokafka.consumer.consumer",
    "aiokafka.consumer.fetcher",
    "aiokafka.consumer.group_coordinator",
    "aiokafka.consumer.subscription_state",
    "aiokafka.producer.producer",
    "aiokafka.producer.sender",
)


class Repetitions(logging.Filter):
    """Drops a record if one from the same place in the code passed within the last minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._passed: dict[tuple[str, int], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        place, now = (record.pathname, record.lineno), self._clock()
        if now - self._passed.get(place, -_SECONDS) < _SECONDS:
            return False
        if len(self._passed) >= _REMEMBERED:
            self._passed.clear()
        self._passed[place] = now
        return True


def drop_repetitions() -> None:
    """For the whole process. Idempotent."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(each, Repetitions) for each in logger.filters):
            logger.addFilter(Repetitions())
