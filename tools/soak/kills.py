"""Workers, relay and proxy are killed again and again while producers upload, announce and delete.

The law of a round: one of each kind dies, at a labelled step or at a random moment, and comes back armed with the next.
"""

import asyncio
import itertools
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from storage_proxy.common.concurrency import cancel_and_wait
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
_MORE_SECONDS = 6.0


@dataclass
class _Deaths:
    """How programs have ended, by the plan of their life."""

    by_plan: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    otherwise: list[str] = field(default_factory=list)


class _Victim:
    """A program under a supervisor: whenever it dies it comes back, armed as the next of ``plans`` says."""

    def __init__(self, program: Program, plans: Sequence[str], deaths: _Deaths, rng: random.Random) -> None:
        self.program = program
        self._plans = itertools.cycle(plans)
        self.plan = next(self._plans)  # a plan that needs no arming
        self.count = 0
        self._deaths = deaths
        self._rng = rng
        self._died = asyncio.Event()
        self.is_spared = False

    @property
    def is_armed(self) -> bool:
        return self.plan not in (RANDOM, MID_REBALANCE)

    async def supervise(self) -> None:
        """Until cancelled."""
        while True:
            code = await self._ended()
            self._deaths.by_plan[self.plan] += 1
            if code != -signal.SIGKILL:
                self._deaths.otherwise.append(f"{' '.join(self.program.command)} exits {code}")
            self.plan = RANDOM if self.is_spared else next(self._plans)
            await self.program.spawn(**({VARIABLE: f"{self.plan}:{self._rng.randint(1, 2)}"} if self.is_armed else {}))
            self.count += 1
            self._died.set()
            self._died = asyncio.Event()

    def kill(self) -> None:
        """Now, wherever it is: not at the step that it was armed for."""
        if self.program.is_running:
            if self.is_armed:
                self.plan = RANDOM
            self.program.send(signal.SIGKILL)

    async def dies(self, seconds: float) -> bool:
        """Wait until it has died and come back; False when that takes longer."""
        try:
            async with asyncio.timeout(seconds):
                await self._died.wait()
        except TimeoutError:
            return False
        return True

    async def _ended(self) -> int:
        assert self.program.process is not None
        return await self.program.process.wait()


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
        async with chaos.supervised():
            for index in range(rounds):
                await chaos.round(index)
        deaths = chaos.deaths
        for plan, count in sorted(deaths.by_plan.items()):
            record.saw(f"killed: {plan}", count)
        for plan, count in sorted(deaths.missed.items()):
            record.saw(f"killed elsewhere, because it did not come to {plan}", count)
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
        self.deaths = _Deaths()

        def victim(program: Program, *plans: str) -> _Victim:
            return _Victim(program, plans, self.deaths, rng)

        # So that five rounds, in which the ingest workers take turns, come to all of them.
        self._ingest = [
            victim(deployment.ingest[0], MID_REBALANCE, *INGEST_STEPS),
            victim(deployment.ingest[1], RANDOM, *reversed(INGEST_STEPS)),
        ]
        self._control = victim(deployment.control, RANDOM, *CONTROL_STEPS)
        self._proxy = victim(deployment.service.proxies[0], RANDOM, *PROXY_STEPS)
        self._loads = 0

    @asynccontextmanager
    async def supervised(self) -> AsyncIterator[None]:
        """Whoever dies comes back while entered; at the end all live, and nobody is armed any more."""
        victims = [*self._ingest, self._control, self._proxy]
        supervisors = [asyncio.create_task(victim.supervise()) for victim in victims]
        try:
            yield
            for victim in victims:
                victim.is_spared = True
                if victim.is_armed:
                    victim.kill()
                    await victim.dies(10)
            for victim in victims:
                async with asyncio.timeout(120):
                    while not await victim.program.ready():  # noqa: ASYNC110 it does not tell that it is
                        await asyncio.sleep(0.1)
        finally:
            await cancel_and_wait(*supervisors)

    async def round(self, index: int) -> None:
        """Let one of each kind die under load."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._load(index))
            for victim in (self._ingest[index % 2], self._control, self._proxy):
                tasks.create_task(self._die(victim, index, tasks))

    async def _die(self, victim: _Victim, index: int, tasks: asyncio.TaskGroup) -> None:
        before = victim.count
        if victim.plan == MID_REBALANCE:
            other = next(each for each in self._ingest if each is not victim)
            other.kill()
            await asyncio.sleep(self._rng.uniform(0.5, 3))
            victim.kill()
        elif not victim.is_armed:
            await asyncio.sleep(self._rng.uniform(0, 3))
            victim.kill()
        give_up = time.monotonic() + _DEATH_SECONDS
        while victim.count == before and not await victim.dies(_MORE_SECONDS):
            if time.monotonic() > give_up:
                self.deaths.missed[victim.plan] += 1
                victim.kill()
            tasks.create_task(self._load(-1))  # until it comes to its step there is more to do

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
