"""The property tests with many more examples than `make check` gives them."""

import asyncio
import os
import re
import sys
from pathlib import Path

from tests.support.programs import ROOT
from tools.soak.record import Record, Scale

PROFILE = "soak"
"""A profile of hypothesis that tests/conftest.py registers and HYPOTHESIS_PROFILE selects."""
EXAMPLES = 5000

_TEST = re.compile(r"^(tests/\S+::\S+?):$", re.MULTILINE)
_STOPPED_AT_THE_DEFAULT = "Stopped because settings.max_examples=100\n"
_PASSING = re.compile(r"(\d+) passing")


async def any_slice_and_any_body(scale: Scale, record: Record, directory: Path) -> None:
    """Layouts, ranges and bodies: any slice is that slice of the whole, whatever breaks on the way."""
    paths = ["tests/formats", "tests/downloads", "tests/http/test_ranges.py"]
    await _run_properties(["tests/downloads/test_bodies.py"] if scale.quick else paths, scale, record, directory)


async def any_answer(scale: Scale, record: Record, directory: Path) -> None:
    """Servers that break every rule: our own requests to them end in the right bytes or in a clear error."""
    paths = ["tests/stores/test_hostile_upstreams.py", "tests/stores/test_http_responses.py"]
    await _run_properties([*paths, "tests/stores/test_buffers.py"], scale, record, directory)


async def any_request(scale: Scale, record: Record, directory: Path) -> None:
    """The fuzzing of the running programs: JSON, queries, tokens, bytes on the wire."""
    only = ["-k", "any_json_sent_to_the_rpc"] if scale.quick else []
    await _run_properties(["tests/e2e/test_hostile_requests.py", *only], scale, record, directory)


async def _run_properties(what: list[str], scale: Scale, record: Record, directory: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HYPOTHESIS")}
    if not scale.quick:
        environment["HYPOTHESIS_PROFILE"] = PROFILE
    record.did(
        f"The property tests of {', '.join(each for each in what if each.startswith('tests'))}"
        + ("" if scale.quick else f", {EXAMPLES:,} examples each (a test that sets its own number keeps it).")
    )
    command = ["-m", "pytest", *what, "-m", "hypothesis", "--hypothesis-show-statistics", "-q"]
    command += ["-p", "no:cacheprovider", f"--basetemp={directory / 'pytest'}"]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        cwd=ROOT,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    printed = output.decode(errors="replace")
    parts = _TEST.split(printed)
    examples = {
        test: sum(int(count) for count in _PASSING.findall(text))
        for test, text in zip(parts[1::2], parts[2::2], strict=True)
    }
    for test, count in examples.items():
        record.saw(test.partition("/")[2], f"{count:,} passing examples")
    last = printed.strip().splitlines()[-1] if printed.strip() else "nothing printed"
    record.saw("pytest", f"exit code {process.returncode}: {last}", holds=process.returncode == 0)
    if process.returncode:
        failed = [line for line in printed.splitlines() if line.startswith(("FAILED", "ERROR"))]
        record.saw("failed", "; ".join(failed[:10]) or printed[-1000:], holds=False)
    wanted = 1 if scale.quick else EXAMPLES
    enough = sum(count >= wanted for count in examples.values())
    record.saw(f"tests with {wanted:,} examples or more", f"{enough} of {len(examples)}", holds=enough > 0)
    if not scale.quick:
        unscaled = printed.count(_STOPPED_AT_THE_DEFAULT)
        record.saw("tests that stopped at hypothesis's own number instead", unscaled, holds=unscaled == 0)
