"""The command: starts the S3 server and the peers, downloads every case from each in turn, prints the table."""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from benchmarks import report
from benchmarks.cases import FULL, SMALL, Case
from benchmarks.measurement import measure
from benchmarks.peers import PEERS, Peer
from benchmarks.processes import BenchmarkError
from benchmarks.report import Results
from benchmarks.storage import fill, running_storage


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured (default: 5)")
    parser.add_argument("--small", action="store_true", help="sizes for a quick look")
    parser.add_argument(
        "--case", action="append", choices=[case.name for case in FULL], help="only this one; repeatable"
    )
    parser.add_argument("--peer", action="append", choices=list(PEERS), help="only this one; repeatable")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement there too")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    given = parser.parse_args()
    if given.rounds < 1:
        parser.error("--rounds must be at least 1")
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


def main() -> None:
    given = arguments()
    cases = [case for case in (SMALL if given.small else FULL) if not given.case or case.name in given.case]
    peers = [name for name in PEERS if not given.peer or name in given.peer]
    try:
        results = asyncio.run(compare(cases, peers, given.rounds))
    except BenchmarkError as error:
        sys.exit(f"benchmarks: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    print(report.markdown(results) if given.markdown else report.plain(results))
    if given.json:
        given.json.write_text(json.dumps(report.as_json(results), indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
