"""What a soak saw, as Markdown: for docs/evidence/, so without a path or a name of the machine it ran on."""

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import hypothesis

from storage_proxy import __version__
from storage_proxy.common.service.loops import LoopChoice, loop_factory
from tests.support.programs import ROOT
from tools.soak.record import Record


def document(
    command: str, records: Mapping[str, Record], left: Sequence[str], began: datetime, loop: LoopChoice
) -> str:
    """The summary of the cases that ran; those that are ``left`` did not, or not to their end."""
    failed = [name for name, record in records.items() if not record.passed]
    verdict = f"{len(failed)} of {len(records)} cases FAILED: {', '.join(failed)}" if failed else "All cases passed."
    if left:
        verdict = f"NOT ALL CASES RAN; without an end: {', '.join(left)}. Of the others: {verdict}"
    lines = [f"# Soak of {began:%Y-%m-%d}", "", verdict, "", "```", command, "```", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in {**_machine(), **_versions(loop)}.items()]
    lines.append(f"| begun, ended | {began:%Y-%m-%d %H:%M}, {datetime.now(UTC):%H:%M} UTC |")
    for name, record in records.items():
        lines += ["", *_section(name, record)]
    return "\n".join(lines) + "\n"


def _section(name: str, record: Record) -> list[str]:
    verdict = "passed" if record.passed else "FAILED"
    lines = [f"## {name}: {verdict}", "", *record.done, "", f"It took {record.seconds:,.0f} s.", ""]
    lines += ["| seen | figure | |", "| --- | --- | --- |"]
    judged = {True: "pass", False: "**FAIL**", None: ""}
    lines += [f"| {_cell(each.what)} | {_cell(each.seen)} | {judged[each.holds]} |" for each in record.figures]
    if record.failure:
        lines += ["", f"Ended by: {_cell(record.failure)}"]
    return lines


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _machine() -> dict[str, str]:
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    memory = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    return {
        "CPU": cpu[0].partition(":")[2].strip() if cpu else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory / (1 << 30):.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
    }


def _revision() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=, with changes"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


def _versions(loop: LoopChoice) -> dict[str, str]:
    found = {
        "event loop": loop_factory(loop).__module__.partition(".")[0],
        "storage-proxy": f"{__version__} {_revision()}".strip(),
        "aiohttp": aiohttp.__version__,
        "hypothesis": hypothesis.__version__,
    }
    for program, option in (("curl", "--version"), ("unzip", "-v"), ("7z", "")):
        if shutil.which(program):
            done = subprocess.run([program, *option.split()], capture_output=True, text=True, check=False)
            found[program] = next((line for line in done.stdout.splitlines() if line.strip()), "")[:80]
    return found
