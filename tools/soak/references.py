"""Thousands of blob references on a real Kafka, shuffled, with poison, duplicates and uploads that come late."""

import asyncio
import random
from pathlib import Path

from tests.support.deployment import Backing, deployed
from tests.support.producers import Producer, producing
from tools.soak.faults import judge
from tools.soak.record import Record, Scale

_SEED = 13
_RUNS = 25
_AT_ONCE = 64
_POISON, _DUPLICATES, _EARLY = 0.01, 0.05, 0.05
_LATE_SECONDS = 3.0


async def references(backing: Backing, scale: Scale, record: Record, directory: Path) -> None:
    """10,000 references, 1 % poison, 5 % twice, 5 % before their upload."""
    rng, count = random.Random(_SEED), scale.of(10_000, 300)
    record.did(
        f"{count:,} references of blobs of {_RUNS} runs, in random order (seed {_SEED}): {_POISON:.0%} poison, "
        f"{_DUPLICATES:.0%} announced twice, {_EARLY:.0%} announced {_LATE_SECONDS:.0f} s before their upload; two "
        "ingest workers."
    )
    async with deployed(backing, directory) as deployment, producing(deployment, rng) as producer:
        await _publish_all(producer, rng, count)
        await judge(deployment, producer, record)


async def _publish_all(producer: Producer, rng: random.Random, count: int) -> None:
    places = asyncio.Semaphore(_AT_ONCE)
    # The kinds are counted, not drawn: a small run has some of each, too.
    kinds = ["poison"] * max(3, round(count * _POISON)) + ["twice"] * round(count * _DUPLICATES)
    kinds += ["early"] * round(count * _EARLY)
    kinds += ["plain"] * (count - len(kinds))
    rng.shuffle(kinds)

    async def publish(number: int, kind: str) -> None:
        run_id, path, body = f"run-{rng.randrange(_RUNS)}", f"part-{number % 100:02}/{number}.bin", producer.body(2000)
        if kind == "early":
            await producer.external(run_id, path, body, announced_first=_LATE_SECONDS)
            return
        async with places:
            if kind == "poison":
                await producer.poison(run_id)
            else:
                await producer.external(run_id, path, body, copies=2 if kind == "twice" else 1)

    await asyncio.gather(*(publish(number, kind) for number, kind in enumerate(kinds)))
