"""Runs the cases, one after the other:
`python -m tools.soak [--case NAME] [--loop NAME] [--quick] [--evidence DIRECTORY]`.

The law: a case that could not run has failed; the exit code is 0 only when every case passed.
"""

import argparse
import asyncio
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pytest

from storage_proxy.common.service.loops import LoopChoice, loop_factory
from tests.support.programs import ROOT
from tools.soak.cancellations import cancellations
from tools.soak.disconnects import clients_that_disconnect
from tools.soak.evidence import document
from tools.soak.faults import Fault, on_own_services
from tools.soak.kills import kills
from tools.soak.large_archives import archives_of_huge_entries, archives_of_many_entries
from tools.soak.orphans import orphans
from tools.soak.outages import downloads_fail_visibly, downloads_survive_restarts
from tools.soak.properties import any_answer, any_request, any_slice_and_any_body
from tools.soak.record import Record, Scale
from tools.soak.references import references
from tools.soak.resumes import resumes_after_cuts
from tools.soak.slow_clients import slow_clients
from tools.soak.stops import kafka_stopped, s3_stopped, worker_comes_and_goes
from tools.soak.uploads import cut_uploads, deleted_while_downloaded, wrong_uploads

EVIDENCE = ROOT / "docs" / "evidence"

Case = Callable[[Scale, Record, Path], Coroutine[Any, Any, None]]
"""Does its work at a scale, in an empty directory of its own, and records what it sees."""

FAULTS: Mapping[str, Fault] = {
    "kills": kills,
    "references": references,
    "kafka-stopped": kafka_stopped,
    "s3-stopped": s3_stopped,
    "worker-comes-and-goes": worker_comes_and_goes,
    "wrong-uploads": wrong_uploads,
    "cut-uploads": cut_uploads,
    "deleted-while-downloaded": deleted_while_downloaded,
    "orphans": orphans,
}

CASES: Mapping[str, Case] = {
    "huge-entries": archives_of_huge_entries,
    "many-entries": archives_of_many_entries,
    "resumes": resumes_after_cuts,
    "outages-healed": downloads_survive_restarts,
    "outages-for-good": downloads_fail_visibly,
    "any-slice": any_slice_and_any_body,
    "any-answer": any_answer,
    "any-request": any_request,
    "disconnects": clients_that_disconnect,
    "slow-clients": slow_clients,
    "cancellations": cancellations,
    **{name: on_own_services(fault) for name, fault in FAULTS.items()},
}


def main(arguments: Sequence[str], cases: Mapping[str, Case] = CASES) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.soak", description=__doc__)
    parser.add_argument("--case", action="append", choices=list(cases), help="only this one; may be repeated")
    parser.add_argument("--loop", choices=get_args(LoopChoice), default="auto", help="of the programs and of the cases")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: proves the runner, not the programs")
    parser.add_argument("--evidence", type=Path, help="where to write the summary; default: docs/evidence if all ran")
    options = parser.parse_args(arguments)
    chosen = {name: case for name, case in cases.items() if not options.case or name in options.case}
    began = datetime.now(UTC)
    if options.loop != "auto":
        os.environ |= {"STORAGE_PROXY__LOOP": options.loop, "MANAGER_API__LOOP": options.loop}
    scale = Scale(quick=options.quick)
    command = " ".join(["python -m tools.soak", *_without_paths(arguments)])
    directory = options.evidence or (EVIDENCE if len(chosen) == len(cases) and not options.quick else None)
    records: dict[str, Record] = {}
    left = list(chosen)
    for name in chosen:
        records[name] = _run(name, chosen[name], scale, options.loop)
        left.remove(name)
        written = document(command, records, left, began, options.loop)
        if directory is not None:  # after each: who stops an hour's run keeps what it saw
            directory.mkdir(parents=True, exist_ok=True)
            (directory / _file_name(began, list(chosen), options.loop)).write_text(written, "utf-8")
    print(written)
    return 0 if all(record.passed for record in records.values()) else 1


def _file_name(began: datetime, cases: Sequence[str], loop: LoopChoice) -> str:
    """Of the summary; what is not the rule stands in it: a case that ran by itself, a loop that was asked for."""
    marks = [*(cases if len(cases) == 1 else ()), *([loop] if loop != "auto" else ())]
    return "-".join([f"{began:%Y-%m-%d}", "soak", *marks]) + ".md"


def _run(name: str, case: Case, scale: Scale, loop: LoopChoice) -> Record:
    record = Record()
    began = time.monotonic()
    print(f"{name} ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as directory:
        try:
            with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
                runner.run(case(scale, record, Path(directory)))
        except (Exception, pytest.skip.Exception, pytest.fail.Exception) as error:  # noqa: BLE001 the next case may run
            record.failure = _shown(f"{type(error).__name__}: {error}", Path(directory))
    record.seconds = time.monotonic() - began
    print(f"{name}: {'passed' if record.passed else 'FAILED'}", file=sys.stderr, flush=True)
    return record


def _shown(text: str, directory: Path) -> str:
    """``text`` without the paths of this machine, and not all of a log."""
    text = text.replace(str(directory), "DIRECTORY").replace(str(ROOT), "CHECKOUT")
    return re.sub(r"(?<![\w:/])/(?:home|root|tmp|work|Users)/\S+", "PATH", text)[-2000:]


def _without_paths(arguments: Sequence[str]) -> list[str]:
    return ["DIRECTORY" if "/" in argument else argument for argument in arguments]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
