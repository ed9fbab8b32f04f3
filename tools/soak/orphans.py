"""cleanup-orphans against thousands of objects: killed, stopped and continued, and while producers upload."""

import asyncio
import random
import signal
import time
from pathlib import Path

from storage_proxy.common.steps import STOP_VARIABLE, VARIABLE
from tests.support.deployment import Backing, Deployment, deployed
from tests.support.operator import Ended, ended
from tests.support.producers import Producer, producing
from tests.support.verdict import settled
from tools.soak.faults import SETTLE_SECONDS, judge
from tools.soak.record import Record, Scale

JOB = ("job", "cleanup-orphans")
_SEED = 15
_RUNS = 40
_AT_ONCE = 64
_LOCKED = 75
_LOCK_SECONDS = 30
"""For so long a job that is stopped keeps its lock: a second one must have begun by then."""
_OLD_SECONDS = 5.0
_LONGEST_LOCK_SECONDS = 200
_LOCK_VARIABLE = "STORAGE_PROXY__LIFECYCLE__LOCK_SECONDS"


async def orphans(backing: Backing, scale: Scale, record: Record, directory: Path) -> None:
    """20,000 objects of which 137 are orphans."""
    rng, objects, lost = random.Random(_SEED), scale.of(20_000, 1500), scale.of(137, 37)
    record.did(
        f"cleanup-orphans on {objects:,} objects in S3 of which {lost} were never announced (seed {_SEED}): a dry run; "
        "a job that is stopped (SIGSTOP) between claim and deletion, beyond the end of its lock; meanwhile a second "
        "one, refused, then one killed between claim and deletion, one killed between deletion and the end of its "
        "claims, and one that finishes; then the first one goes on. Meanwhile blobs are uploaded and announced."
    )
    async with deployed(backing, directory) as deployment, producing(deployment, rng) as producer:
        orphaned = await _fill(producer, rng, objects, lost)
        found = await settled(deployment, producer, within=SETTLE_SECONDS)
        record.saw("objects with a verified record", f"{producer.ledger.blobs:,}", holds=not found)
        await asyncio.sleep(_OLD_SECONDS)  # not a wait for a condition: objects have to be older than orphan_seconds
        before = (await producer.objects()).keys()
        dry = await deployment.operator.ask(*JOB, "--dry-run")
        named = {line["name"].removeprefix("media/") for line in dry.lines if "name" in line}
        seen = f"exit {dry.code}, {len(named)} named"
        record.saw("dry run", seen, holds=dry.code == 0 and named == orphaned)
        removed = before - (await producer.objects()).keys()
        record.saw("objects that the dry run removed", len(removed), holds=not removed)
        done = asyncio.Event()
        uploading = asyncio.create_task(_upload_until(producer, done))
        try:
            again = await _jobs(deployment, producer, orphaned, record)
        finally:
            done.set()
            uploaded = await uploading
        record.saw("blobs uploaded meanwhile", uploaded, holds=uploaded > 0)
        after = (await producer.objects()).keys()
        promised = {f"runs/{run}/{path}" for run, blobs in producer.ledger.verified.items() for path in blobs}
        seen = f"{len(orphaned - after)} of {lost}" if not again else f"{lost} of {lost}, {len(again)} put there again"
        record.saw("orphans removed", seen, holds=orphaned & after == again)
        record.saw("other objects removed", len(promised - after), holds=promised <= after)
        if not scale.quick:  # the claims of those that were killed and stopped end only after two minutes
            for key in again:
                _, run_id, path = key.split("/", 2)
                await producer.announce(run_id, path, b"again")
        await judge(deployment, producer, record)


async def _fill(producer: Producer, rng: random.Random, objects: int, lost: int) -> set[str]:
    """Put the objects and announce all but those that are to be orphans, which are returned."""
    chosen, places = set(rng.sample(range(objects), lost)), asyncio.Semaphore(_AT_ONCE)

    async def put(number: int) -> str | None:
        run_id, path = f"run-{number % _RUNS}", f"{number:05}.bin"
        async with places:
            if number not in chosen:
                await producer.external(run_id, path, producer.body(200))
                return None
            await producer.store(run_id, path, producer.body(200))
            return f"runs/{run_id}/{path}"

    return {key for key in await asyncio.gather(*map(put, range(objects))) if key is not None}


async def _jobs(deployment: Deployment, producer: Producer, orphaned: set[str], record: Record) -> set[str]:
    """Jobs that are stopped, refused, killed; returns the keys that were put again before the stopped one went on."""
    operator, lock_seconds, stopped = deployment.operator, _LOCK_SECONDS, []
    while True:
        more = {STOP_VARIABLE: "orphan-claimed", _LOCK_VARIABLE: str(lock_seconds)}
        stopped.append(await operator.begin(*JOB, **more))
        await _until_stopped(stopped[-1].pid)
        refused = await operator.ask(*JOB, "--dry-run")
        if refused.code != 0 or lock_seconds > _LONGEST_LOCK_SECONDS:
            break
        lock_seconds *= 2  # a machine so busy that the second one began only after the end of the lock
    names_it = f":{stopped[-1].pid}" in refused.complaint
    seen = f"exit {refused.code}, names the holder: {names_it}"
    record.saw("a second instance", seen, holds=refused.code == _LOCKED and names_it)
    for step in ("orphan-claimed", "orphan-deleted"):
        killed = await _once_free(deployment, **{VARIABLE: step})
        record.saw(f"killed at {step}", f"exit {killed.code}", holds=killed.code == -signal.SIGKILL)
    finished = await _once_free(deployment)
    record.saw("the job after them", f"exit {finished.code} {finished.complaint}".strip(), holds=finished.code == 0)
    left = orphaned & (await producer.objects()).keys()
    record.saw("orphans left by it", len(left), holds=not left)
    again = set(sorted(orphaned)[::3])
    for key in again:
        _, run_id, path = key.split("/", 2)
        await producer.store(run_id, path, b"again")
    for each in stopped:
        each.send_signal(signal.SIGCONT)
        end = await ended(each)
        told = end.complaint.strip().splitlines()[-1:]
        lost = end.code == 1 and "lock was lost" in end.complaint
        record.saw("the stopped one, going on", f"exit {end.code}: {' '.join(told)}", holds=lost)
    return again


async def _once_free(deployment: Deployment, **environment: str) -> Ended:
    """Run the job as soon as its lock can be had."""
    give_up = time.monotonic() + 2 * _LONGEST_LOCK_SECONDS
    while True:
        end = await deployment.operator.ask(*JOB, **environment)
        if end.code != _LOCKED or time.monotonic() > give_up:
            return end
        await asyncio.sleep(0.5)


async def _until_stopped(pid: int) -> None:
    async with asyncio.timeout(120):
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.02)


async def _upload_until(producer: Producer, done: asyncio.Event) -> int:
    """Upload in both ways, into the runs with orphans; how many."""
    number = 0
    while not done.is_set():
        run_id = f"run-{number % _RUNS}"
        await producer.upload(run_id, f"during/{number}.bin", producer.body())
        await producer.external(run_id, f"during/{number}-external.bin", producer.body())
        number += 1
        await asyncio.sleep(0.2)
    return 2 * number
