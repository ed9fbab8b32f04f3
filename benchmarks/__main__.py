"""The command: starts the servers, measures every subject that is asked for in rounds, prints the tables."""

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Protocol

from benchmarks import calls, deletion, effort_report, ingestion, listing, presigns, report
from benchmarks.cases import FULL, SMALL, Case
from benchmarks.efforts import Efforts
from benchmarks.measurement import measure
from benchmarks.peers import PEERS, Peer
from benchmarks.processes import BenchmarkError
from benchmarks.report import Results
from benchmarks.storage import Storage, fill, running_storage

DOWNLOADS = "downloads"


class Comparison(Protocol):
    """Measures in rounds how ``count`` things are done, here and by others."""

    def __call__(self, storage: Storage, rounds: int, *, count: int) -> Awaitable[Efforts]: ...


LIFECYCLE: Mapping[str, tuple[Comparison, int, int]] = {
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
        "--only", action="append", choices=[DOWNLOADS, *LIFECYCLE], help="only this subject; repeatable (default: all)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured (default: 5)")
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
    if given.case or given.peer:
        given.only = given.only or [DOWNLOADS]
    return given


async def compare(cases: Sequence[Case], peer_names: Sequence[str], rounds: int) -> Results:
    """Each round downloads every case from every peer; every second round in the opposite order of peers."""
    results = Results(rounds, cases)
    async with AsyncExitStack() as stack:
        storage = await stack.enter_async_context(running_storage())
        say("filling the S3 server ...")
        await fill(storage, cases)
        peers: dict[str, Peer] = {name: await stack.enter_async_context(PEERS[name](storage)) for name in peer_names}
        targets = [
            (case, name, peer, target)
            for case in cases
            for name, peer in peers.items()
            if (target := await peer.target(case))
        ]
        say("warming up ...")
        for _, _, peer, target in targets:
            await measure(target, peer.pid)
        for number in range(rounds):
            say(f"round {number + 1} of {rounds} ...")
            for case, name, peer, target in targets if number % 2 == 0 else reversed(targets):
                results.add(case, name, await measure(target, peer.pid))
    return results


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


async def take(name: str, rounds: int, *, small: bool) -> Efforts:
    """One subject, on an S3 server of its own."""
    comparison, full, quick = LIFECYCLE[name]
    say(f"{name} ...")
    async with running_storage() as storage:
        return await comparison(storage, rounds, count=quick if small else full)


def main() -> None:
    given = arguments()
    only = given.only or [DOWNLOADS, *LIFECYCLE]
    cases = [case for case in (SMALL if given.small else FULL) if not given.case or case.name in given.case]
    peers = [name for name in PEERS if not given.peer or name in given.peer]
    measured: dict[str, Any] = {}
    try:
        if DOWNLOADS in only:
            results = asyncio.run(compare(cases, peers, given.rounds))
            print(report.markdown(results) if given.markdown else report.plain(results))
            measured |= report.as_json(results)
        for name in LIFECYCLE:
            if name in only:
                efforts = asyncio.run(take(name, given.rounds, small=given.small))
                print(effort_report.table(efforts, markdown=given.markdown), flush=True)
                measured[name] = effort_report.as_json(efforts)
    except BenchmarkError as error:
        sys.exit(f"benchmarks: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    if given.json:
        given.json.write_text(json.dumps(measured, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
