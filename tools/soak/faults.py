"""Cases on a Kafka and an S3 server of their own, and what they have in common.

The law: a fault is judged by its end: whatever was killed or stopped, everything is settled as producers were promised.
"""

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from tests.support.deployment import Backing, Deployment
from tests.support.producers import Producer
from tests.support.verdict import settled
from tools.soak.record import Record, Scale

Fault = Callable[[Backing, Scale, Record, Path], Coroutine[Any, Any, None]]
"""Causes a fault on what is deployed over the services, and records how it ended."""

SETTLE_SECONDS = 240.0


def on_own_services(fault: Fault) -> Callable[[Scale, Record, Path], Coroutine[Any, Any, None]]:
    """The case of a fault: with services that nobody else uses."""

    async def case(scale: Scale, record: Record, directory: Path) -> None:
        backing = Backing.beneath(directory / "services")
        try:
            await backing.start()
            await fault(backing, scale, record, directory / "deployment")
        finally:
            await backing.kill()

    return case


async def judge(deployment: Deployment, producer: Producer, record: Record, *, swept: bool = True) -> None:
    """Wait until all is settled, and record what was promised and what contradicts it."""
    found = await settled(deployment, producer, within=SETTLE_SECONDS, swept=swept)
    ledger = producer.ledger
    promised = f"{ledger.blobs:,} blobs of {len(ledger.live):,} runs"
    record.saw("to be verified, once, with size and CRC-32", promised, holds=ledger.blobs > 0)
    record.saw(f"deleted runs, to be {'swept' if swept else 'deleted'}", f"{len(ledger.deleted):,}")
    record.saw("dead letters, all of them poison", f"{len(ledger.poison):,}")
    record.saw("tries that producers had to repeat", f"{ledger.retries:,}")
    record.saw("contradictions at the end", "; ".join(found) or "none", holds=not found)
