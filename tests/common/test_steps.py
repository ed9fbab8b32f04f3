"""The steps at which a test ends the process, in real processes."""

import os
import signal
import subprocess
import sys

import pytest

from storage_proxy.common.steps import STOP_VARIABLE, VARIABLE

PROGRAM = """
from storage_proxy.common.steps import step
for name in ["one", "two", "one", "two"]:
    print(name, flush=True)
    step(name)
"""


def run(value: str | None) -> subprocess.CompletedProcess[str]:
    environment = {name: text for name, text in os.environ.items() if name != VARIABLE}
    environment |= {} if value is None else {VARIABLE: value}
    return subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("value", "passed"), [("two", 2), ("two:2", 4), ("one:2", 3)])
def test_the_process_ends_at_its_step(value: str, passed: int) -> None:
    ended = run(value)
    assert ended.returncode == -signal.SIGKILL
    assert len(ended.stdout.splitlines()) == passed


@pytest.mark.parametrize("value", [None, "three", "one:3"])
def test_a_step_that_is_not_named_does_nothing(value: str | None) -> None:
    assert run(value).returncode == 0


def test_a_process_that_is_stopped_at_its_step_goes_on_when_it_is_let() -> None:
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(
        command, env={**os.environ, STOP_VARIABLE: "two"}, stdout=subprocess.PIPE, text=True
    ) as process:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        process.send_signal(signal.SIGCONT)
        printed, _ = process.communicate()
    assert process.returncode == 0
    assert len(printed.splitlines()) == 4
