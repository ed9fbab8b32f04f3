"""The command: starts the servers, measures every subject that is asked for in rounds, prints the tables."""

import argparse
import asyncio
import fcntl
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import aiohttp

from benchmarks import aims, calls, crowd, deletion, effort_report, entries, ingestion, listing, presigns, report
from benchmarks.cases import FULL, SMALL, Case
from benchmarks.client import Target
from benchmarks.efforts import Efforts
from benchmarks.figures import Figures
from benchmarks.measurement import measure
from benchmarks.nginx import Unavailable
from benchmarks.peers import OBVIOUS, OURS, PEERS, Peer
from benchmarks.processes import BenchmarkError, free_port
from benchmarks.programs import program
from benchmarks.report import Results
from benchmarks.storage import WORKSPACE, Storage, fill, fresh_copy, running_storage

DOWNLOADS = "downloads"
FAILURES = BenchmarkError, aiohttp.ClientError, OSError
"""What a server that is gone or refuses comes to."""


class Comparison(Protocol):
    """Measures in rounds how ``count`` things are done, here and by others."""

    def __call__(self, storage: Storage, rounds: int, *, count: int) -> Awaitable[Efforts | Figures]: ...


SUBJECTS: Mapping[str, tuple[Comparison, int, int]] = {
    crowd.SUBJECT: (crowd.compare, 1_000, 50),
    entries.SUBJECT: (entries.compare, 100_000, 3_000),
    "calls": (calls.compare, 5_000, 500),
    "ingestion": (ingestion.compare, 10_000, 1_000),
    "presigns": (presigns.compare, 10_000, 500),
    "listing": (listing.compare, 100_000, 5_000),
    "deletion": (deletion.compare, 100_000, 2_000),
}
"""What is measured apart from downloads, with the full size and the small one."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=[DOWNLOADS, *SUBJECTS], help="only this subject; repeatable (default: all)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured (default: 5)")
    parser.add_argument(
        "--count", type=int, help="so many clients, entries, ... instead of a subject's own number (not of downloads)"
    )
    parser.add_argument("--small", action="store_true", help="sizes for a quick look")
    parser.add_argument(
        "--case", action="append", choices=[case.name for case in FULL], help="of downloads only this one; repeatable"
    )
    parser.add_argument(
        "--peer", action="append", choices=list(PEERS), help="of downloads only from this one; repeatable"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement there too")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    given = parser.parse_args()
    if given.rounds < 1:
        parser.error("--rounds must be at least 1")
    if given.count is not None and given.count < 1:
        parser.error("--count must be at least 1")
    if given.case or given.peer:
        given.only = given.only or [DOWNLOADS]
    return given


async def compare(cases: Sequence[Case], peer_names: Sequence[str], rounds: int) -> Results:
    """All rounds of the cases whose S3 server is near, then of those where it is far."""
    results = Results(rounds, cases)
    async with running_storage() as storage:
        say("filling the S3 server ...")
        await fill(storage, cases)
        for origin_ms, near in groupby(sorted(cases, key=lambda case: case.origin_ms), lambda case: case.origin_ms):
            async with _seen_from(storage, origin_ms) as seen:
                # Another way to the same S3 server makes no difference to others than these.
                names = [name for name in peer_names if not origin_ms or name in (OURS, OBVIOUS)]
                await _compare(results, list(near), names, seen)
    return results


@asynccontextmanager
async def _seen_from(storage: Storage, milliseconds: int) -> AsyncIterator[Storage]:
    """The S3 server as it is reached from so far away."""
    if not milliseconds:
        yield storage
        return
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    origin = storage.endpoint.rpartition(":")[2]
    command = [sys.executable, "-m", "benchmarks.delayed_origin", str(port), origin, str(milliseconds)]
    async with program("delayed_origin", command, url):
        yield replace(storage, endpoint=url)


async def _compare(results: Results, cases: Sequence[Case], peer_names: Sequence[str], storage: Storage) -> None:
    """Each round downloads every case from every peer; every second round in the opposite order of peers."""
    async with AsyncExitStack() as stack:
        peers: dict[str, Peer] = {}
        for name in peer_names:
            try:
                peers[name] = await stack.enter_async_context(PEERS[name](storage))
            except Unavailable as missing:
                say(f"{name} is left out: {missing}")
        pairs = [(case, name) for case in cases for name in peers if name == OURS or not case.only_ours]
        targets: dict[tuple[str, str], Target | None] = {}
        for number in range(results.rounds + 1):
            say(f"round {number} of {results.rounds} ..." if number else "warming up ...")
            for case, name in pairs if number % 2 else reversed(pairs):
                try:
                    if (case.name, name) not in targets or not case.has_crcs:
                        targets[case.name, name] = await _target(peers[name], case, number)
                    if (target := targets[case.name, name]) is not None:
                        measurement = await measure(target, peers[name].pid)
                        if number:
                            results.add(case, name, measurement)
                except FAILURES as error:
                    say(f"{case.title}, {name}: {error}")
                    results.fail(case, name, str(error))
            pairs = [(case, name) for case, name in pairs if (case.name, name) not in results.failures]


async def _target(peer: Peer, case: Case, number: int) -> Target | None:
    """What ``peer`` serves of ``case``; blobs whose CRC-32s shall be unknown are new to it in each round."""
    return await peer.target(case if case.has_crcs else await asyncio.to_thread(fresh_copy, case, number))


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


async def take(comparison: Comparison, rounds: int, count: int) -> Efforts | Figures:
    """One subject, on an S3 server of its own."""
    async with running_storage() as storage:
        return await comparison(storage, rounds, count=count)


@contextmanager
def _alone() -> Iterator[None]:
    """Two runs in one place would overwrite each other's configuration, and measure each other."""
    WORKSPACE.mkdir(parents=True, exist_ok=True)
    with (WORKSPACE / "lock").open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BenchmarkError("another run is under way here") from None
        yield


def run(given: argparse.Namespace) -> tuple[Mapping[str, Any], bool]:
    """Measure what is asked for and print each table when it is done; the same as JSON's values, and if all was well.

    What fails is left out, and the rest is measured.
    """
    only = given.only or [DOWNLOADS, *SUBJECTS]
    cases = [case for case in (SMALL if given.small else FULL) if not given.case or case.name in given.case]
    peers = [name for name in PEERS if not given.peer or name in given.peer]
    measured: dict[str, Any] = {}
    facts: dict[tuple[str, str, str], float] = {}
    well = True
    if DOWNLOADS in only:
        results = asyncio.run(compare(cases, peers, given.rounds))
        print(report.markdown(results) if given.markdown else report.plain(results), flush=True)
        measured |= report.as_json(results)
        facts |= results.facts()
        well = not results.failures
    for name, (comparison, full, quick) in SUBJECTS.items():
        if name in only:
            say(f"{name} ...")
            try:
                taken = asyncio.run(take(comparison, given.rounds, given.count or (quick if given.small else full)))
            except FAILURES as error:
                say(f"{name}: {error}")
                well = False
                continue
            if isinstance(taken, Figures):
                table, measured[name] = taken.table(markdown=given.markdown), taken.as_json()
                facts |= taken.facts()
            else:
                table = effort_report.table(taken, markdown=given.markdown)
                measured[name] = effort_report.as_json(taken)
            print(f"\n{table}", flush=True)
    if held := aims.table(facts, markdown=given.markdown):
        print(f"\n{held}")
        measured["aims"] = aims.as_json(facts)
    return measured, well


def main() -> None:
    given = arguments()
    try:
        with _alone():
            measured, well = run(given)
    except BenchmarkError as error:
        sys.exit(f"benchmarks: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    if given.json:
        given.json.write_text(json.dumps(measured, indent=2) + "\n", "utf-8")
    if not well:
        sys.exit("benchmarks: not everything could be measured: see above")


if __name__ == "__main__":
    main()
