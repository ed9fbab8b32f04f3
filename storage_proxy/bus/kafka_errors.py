"""What aiokafka's errors mean to the port."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiokafka.errors import (
    ConsumerStoppedError,
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    RecordTooLargeError,
)

from storage_proxy.bus.port import EventTooLarge
from storage_proxy.common.errors import BusUnavailable


@asynccontextmanager
async def translated(doing: str, *, seconds: float | None = None) -> AsyncIterator[None]:
    """aiokafka's errors as the port's, within a deadline if there is one. ``doing`` is what it was about."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except (MessageSizeTooLargeError, RecordListTooLargeError, RecordTooLargeError) as error:
        raise EventTooLarge("An event is larger than Kafka takes") from error
    except TimeoutError as error:
        raise BusUnavailable(f"Kafka did not answer in time ({doing})") from error
    except (KafkaError, ConsumerStoppedError, OSError) as error:
        raise BusUnavailable(f"Kafka refused or failed ({doing}): {type(error).__name__}") from error
