"""Whether the service holds what producers were promised: asked as its users and its operator ask."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence

from tests.support.deployment import Deployment
from tests.support.operator import State
from tests.support.producers import Ledger, Producer

_ROWS_OF_RUNS = ("run", "totals", "blob", "upload")
_POLL_SECONDS = 1.0
_SHOWN = 20


async def contradictions(deployment: Deployment, producer: Producer, *, swept: bool = True) -> Sequence[str]:
    """What is not as the ledger says, each in a sentence; empty when all is settled.

    Without ``swept`` the second pass over deleted runs is not waited for: it comes up to a minute later.
    """
    state = await deployment.operator.state()
    found = [*_unsettled(state, swept=swept), *_of_deleted(state, producer.ledger, swept=swept)]
    if found:  # the rest is asked once the rows are right: it costs the programs time
        return found
    objects = await producer.objects()
    found += [f"{key} is still in the bucket" for key in objects if key.split("/")[1] in producer.ledger.deleted]
    for run_id in sorted(producer.ledger.deleted):
        status, run = await producer.api("GET", f"/v1/runs/{run_id}")
        if (status, run.get("state")) != (200, "deleted"):
            found.append(f"deleted run {run_id} is answered {status} {run}")
    for run_id in sorted(producer.ledger.live):
        found += await _of_live(producer, run_id)
    return [*found, *await _of_dead_letters(deployment, producer.ledger)]


async def settled(deployment: Deployment, producer: Producer, *, within: float, swept: bool = True) -> Sequence[str]:
    """Wait until nothing contradicts the ledger, so many seconds at most; what then still does."""
    give_up = time.monotonic() + within
    while (found := await contradictions(deployment, producer, swept=swept)) and time.monotonic() < give_up:
        await asyncio.sleep(_POLL_SECONDS)
    return found[:_SHOWN]


def _unsettled(state: State, *, swept: bool) -> list[str]:
    return [
        f"{len(rows)} rows of {table}, as {next(iter(rows.items()))}"
        for table in ("outbox", "due", *(["sweep"] if swept else []))
        if (rows := state.rows(table))
    ]


def _of_deleted(state: State, ledger: Ledger, *, swept: bool) -> list[str]:
    found = []
    ends = ("swept",) if swept else ("deleted", "swept")
    tombstones = state.rows("tombstone")
    for run_id in sorted(ledger.deleted):
        row = tombstones.get((run_id,))
        if row is None or row["state"] not in ends:
            found.append(f"tombstone of {run_id} is {row}")
    if strangers := tombstones.keys() - {(run_id,) for run_id in ledger.deleted}:
        found.append(f"tombstones of runs that nobody deleted: {strangers}")
    left = Counter(table for table in _ROWS_OF_RUNS for key in state.rows(table) if key[0] in ledger.deleted)
    return found + [f"{count} rows of {table} are of deleted runs" for table, count in left.items()]


async def _of_live(producer: Producer, run_id: str) -> list[str]:
    ledger = producer.ledger
    listed = await producer.blobs(run_id)
    found = []
    paths = Counter(blob["path"] for blob in listed)
    found += [f"{run_id}/{path} is listed {count} times" for path, count in paths.items() if count > 1]
    verified = {each["path"]: (each["size"], each["crc32"]) for each in listed if each["state"] == "verified"}
    wanted = ledger.verified.get(run_id, {})
    found += [f"{run_id}/{path} is not verified" for path in wanted.keys() - verified.keys()]
    found += [f"{run_id}/{path} is verified, for no reason" for path in verified.keys() - wanted.keys()]
    found += [
        f"{run_id}/{path} is {verified[path]}, not {wanted[path]}"
        for path in wanted.keys() & verified.keys()
        if verified[path] != wanted[path]
    ]
    rejected = {each["path"] for each in listed if each["state"] == "rejected"}
    if rejected != ledger.rejected.get(run_id, set()):
        found.append(f"{run_id} has rejected {rejected}, not {ledger.rejected.get(run_id)}")
    if len(listed) != len(verified) + len(rejected):
        found.append(f"{run_id} has blobs in other states")
    _, run = await producer.api("GET", f"/v1/runs/{run_id}")
    totals = (run.get("state"), run.get("blobs"), run.get("bytes"))
    if verified and totals != ("active", len(verified), sum(size for size, _ in verified.values())):
        found.append(f"run {run_id} is told to be {totals}")
    return found


async def _of_dead_letters(deployment: Deployment, ledger: Ledger) -> list[str]:
    letters = {letter["value"]: letter["reason"] for letter in await deployment.operator.dead_letters()}
    found = [f"dead letter that was no poison ({letters[value]}): {value}" for value in letters.keys() - ledger.poison]
    return found + [f"poison without a dead letter: {value}" for value in ledger.poison - letters.keys()]
