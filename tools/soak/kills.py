"""Workers, relay and proxy are killed again and again while producers upload, announce and delete.

The law of a round: one of each kind dies, at a labelled step or at a random moment, and comes back armed for the next.
"""

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from storage_proxy.common.steps import VARIABLE
from tests.support.deployment import Backing, Deployment, deployed
from tests.support.producers import Producer, producing
from tests.support.programs import Program
from tools.soak.faults import judge
from tools.soak.record import Record, Scale

INGEST_STEPS = ("ingest-recorded", "ingest-dead-lettered", "reconciled")
CONTROL_STEPS = ("outbox-published", "run-erasing", "run-clearing", "run-deleted")
PROXY_STEPS = ("upload-received",)
RANDOM = "at random"
MID_REBALANCE = "while the other joins"

_SEED = 12
_DEATH_SECONDS = 60.0


@dataclass
class _Victim:
    """A program, and where it is to die in this round."""

    program: Program
    plan: str = RANDOM

    @property
    def is_armed(self) -> bool:
        return self.plan not in (RANDOM, MID_REBALANCE)

    async def come_back(self, plan: str, count: int) -> None:
        self.plan = plan
        await self.program.spawn(**({VARIABLE: f"{plan}:{count}"} if self.is_armed else {}))


@dataclass
class _Deaths:
    """How programs have ended."""

    by_plan: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    otherwise: list[str] = field(default_factory=list)

    def count(self, victim: _Victim, code: int) -> None:
        self.by_plan[victim.plan] += 1
        if code != -signal.SIGKILL:
            self.otherwise.append(f"{' '.join(victim.program.command)} exits {code}")


async def kills(backing: Backing, scale: Scale, record: Record, directory: Path) -> None:
    """200 rounds of kill -9 of an ingest worker, the control worker and the proxy."""
    rng, rounds = random.Random(_SEED), scale.of(200, 5)
    record.did(
        f"{rounds} rounds (seed {_SEED}) in each of which one of two ingest workers, the control worker (control "
        "consumer, relay, sweeper) and the proxy are killed by SIGKILL and restarted, each at a labelled step "
        f"({', '.join(INGEST_STEPS + CONTROL_STEPS + PROXY_STEPS)}), at a random moment, or, the ingest worker, while "
        "the other one joins the group; meanwhile uploads by presigned URL and through the proxy, announcements by "
        "Kafka before and after the upload, duplicates, poison, and deletions of runs with uploads under way."
    )
    async with deployed(backing, directory) as deployment, producing(deployment, rng) as producer:
        chaos = _Rounds(deployment, producer, rng)
        for index in range(rounds):
            await chaos.round(index)
        await chaos.end()
        deaths = chaos.deaths
        for plan, count in sorted(deaths.by_plan.items()):
            missed = f", not reached {deaths.missed[plan]} times" if deaths.missed[plan] else ""
            record.saw(f"killed: {plan}", f"{count}{missed}", holds=count > 0)
        steps = {*INGEST_STEPS, *CONTROL_STEPS, *PROXY_STEPS}
        record.saw("kills", f"{deaths.by_plan.total()}", holds=deaths.by_plan.total() >= 3 * rounds)
        unreached = sorted(steps - deaths.by_plan.keys())
        record.saw("steps at which nothing died", ", ".join(unreached) or "none", holds=not unreached)
        record.saw(
            "programs that ended by themselves", "; ".join(deaths.otherwise) or "none", holds=not deaths.otherwise
        )
        await judge(deployment, producer, record)


class _Rounds:
    """The rounds, and who dies how in each."""

    def __init__(self, deployment: Deployment, producer: Producer, rng: random.Random) -> None:
        self._producer = producer
        self._rng = rng
        self._ingest = [_Victim(each) for each in deployment.ingest]
        self._control = _Victim(deployment.control)
        self._proxy = _Victim(deployment.service.proxies[0])
        self._loads = 0
        self.deaths = _Deaths()

    async def round(self, index: int) -> None:
        """Let one of each kind die under load, and come back armed for the next round."""
        target = self._ingest[index % 2]
        victims = [target, self._control, self._proxy]
        load = asyncio.create_task(self._load(index))
        try:
            await asyncio.gather(*(self._die(victim) for victim in victims))
            following = self._ingest[(index + 1) % 2]
            await self._control.come_back(self._next(CONTROL_STEPS, index), self._rng.randint(1, 2))
            await self._proxy.come_back(self._next((*PROXY_STEPS, RANDOM), index), self._rng.randint(1, 2))
            await target.come_back(RANDOM, 0)
            await self._arm(following, self._next((*INGEST_STEPS, MID_REBALANCE), index))
            await load
        finally:
            load.cancel()
            await asyncio.gather(load, return_exceptions=True)

    async def end(self) -> None:
        """All run, and nobody is armed any more."""
        for victim in [*self._ingest, self._control, self._proxy]:
            if victim.is_armed:
                await _kill(victim.program)
                await victim.come_back(RANDOM, 0)
            async with asyncio.timeout(60):
                while not await victim.program.ready():
                    await asyncio.sleep(0.1)

    def _next(self, plans: Sequence[str], index: int) -> str:
        """Each of ``plans`` in turn, and every fifth time at random."""
        return RANDOM if index % 5 == 4 else plans[index % 5 % len(plans)]

    async def _arm(self, victim: _Victim, plan: str) -> None:
        """The other ingest worker was spared in this round; to be armed it is begun anew: a member comes and goes."""
        if plan == MID_REBALANCE:
            victim.plan = plan
            return
        if plan != RANDOM:
            await victim.program.stop(signal.SIGTERM)
            await victim.come_back(plan, self._rng.randint(1, 2))

    async def _die(self, victim: _Victim) -> None:
        if victim.plan == MID_REBALANCE:
            other = next(each for each in self._ingest if each is not victim)
            await _kill(other.program)
            await other.come_back(RANDOM, 0)
            await asyncio.sleep(self._rng.uniform(0.5, 2.5))
        elif victim.is_armed:
            await self._until_it_dies(victim)
        else:
            await asyncio.sleep(self._rng.uniform(0, 3))
        self.deaths.count(victim, await _kill(victim.program))

    async def _until_it_dies(self, victim: _Victim) -> None:
        """It dies at its step; until it comes there, there is more to do."""
        process = victim.program.process
        assert process is not None
        give_up = time.monotonic() + _DEATH_SECONDS
        while time.monotonic() < give_up:
            try:
                async with asyncio.timeout(5):
                    await process.wait()
            except TimeoutError:
                await self._load(-1)
            else:
                return
        self.deaths.missed[victim.plan] += 1
        victim.plan = RANDOM

    async def _load(self, index: int) -> None:
        """What producers do in a round."""
        self._loads += 1
        number, rng, producer = self._loads, self._rng, self._producer
        live, doomed, spoiled = f"live-{number}", f"doomed-{number}", f"spoiled-{number}"
        uploads = [
            producer.upload(live, "direct.bin", producer.body()),
            producer.upload(live, "late.bin", producer.body(), wait=rng.uniform(0.5, 2)),
            producer.upload(live, "proxied.bin", producer.body(), via="proxy"),
            producer.external(live, "external/1.bin", producer.body(), copies=rng.choice([1, 1, 2])),
            producer.external(live, "external/2.bin", producer.body(), announced_first=rng.uniform(0.5, 1.5)),
            producer.poison(spoiled),
            self._doom(doomed),
        ]
        await asyncio.gather(*uploads)
        if index >= 2 and index % 3 == 0:
            await producer.delete(live)

    async def _doom(self, run_id: str) -> None:
        """A run that is deleted while it is uploaded to."""
        producer = self._producer
        await producer.external(run_id, "external.bin", producer.body())
        await producer.upload(run_id, "first.bin", producer.body())
        during = [producer.upload(run_id, f"{via}.bin", producer.body(), via=via) for via in (None, "proxy")]

        async def end() -> None:
            await asyncio.sleep(self._rng.uniform(0, 0.3))
            await producer.delete(run_id)

        await asyncio.gather(*during, end())


async def _kill(program: Program) -> int:
    """By SIGKILL, unless it is dead; its exit code."""
    return await program.stop(signal.SIGKILL)
