"""The soak's runner, at sizes that prove nothing but itself; `make soak` is the real run.

The faults of ingestion and lifecycle are run by test_faults.py, on services that they share.
"""

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from tests.support import zip_readers
from tests.support.programs import ROOT
from tests.support.s3 import S3Server
from tools.soak.__main__ import CASES, FAULTS, main
from tools.soak.record import Record, Scale


async def test_every_case_runs_and_writes_what_it_saw(s3: S3Server, tmp_path: Path) -> None:
    for reader in ("curl", "unzip", "7z"):
        zip_readers.program(reader)
    names = [name for name in CASES if name not in FAULTS]
    chosen = [option for name in names for option in ("--case", name)]
    code, printed = await soak("--quick", *chosen, "--evidence", str(tmp_path))
    assert code == 0, printed
    (written,) = tmp_path.iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-soak\.md", written.name)
    evidence = written.read_text("utf-8")
    assert evidence in printed
    assert "All cases passed." in evidence
    assert [line for line in evidence.splitlines() if line.startswith("## ")] == [
        f"## {name}: passed" for name in names
    ]
    for told in ("CPU", "cores", "memory", "kernel", "Python", "curl"):
        assert f"| {told} | " in evidence
    for private in (str(tmp_path), str(ROOT), os.uname().nodename, "/tmp/"):
        assert private not in evidence


async def test_a_case_whose_program_is_not_installed_fails(tmp_path: Path) -> None:
    """For real: without curl and the zip programs there is nothing to see."""
    code, printed = await soak("--quick", "--case", "many-entries", "--evidence", str(tmp_path), PATH=str(tmp_path))
    assert code == 1, printed
    assert "## many-entries: FAILED" in printed
    assert not any(path.name.startswith("soak-") for path in tmp_path.iterdir())


async def passes(scale: Scale, record: Record, directory: Path) -> None:
    (directory / "file").write_text("it has a directory of its own")
    record.did("Nothing.")
    record.saw("a figure", scale.of(1000, 1), holds=True)
    record.saw("another", 2)


async def sees_what_must_not_be(scale: Scale, record: Record, directory: Path) -> None:
    record.saw("lost bytes", 1, holds=False)
    record.saw("the rest", "fine", holds=True)


async def raises(scale: Scale, record: Record, directory: Path) -> None:
    record.saw("a figure", 1, holds=True)
    raise RuntimeError(f"no such file: {directory}/x, {ROOT}/y and /root/z | a bar")


async def is_skipped(scale: Scale, record: Record, directory: Path) -> None:
    record.saw("a figure", 1, holds=True)
    pytest.skip("there is no server")


async def sees_nothing(scale: Scale, record: Record, directory: Path) -> None:
    record.did("Nothing, and judged nothing.")


@pytest.mark.parametrize("case", [sees_what_must_not_be, raises, is_skipped, sees_nothing])
def test_one_failing_case_fails_the_soak(case: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--evidence", str(tmp_path)], {"fails": case, "passes": passes}) == 1
    (written,) = tmp_path.iterdir()
    evidence = written.read_text("utf-8")
    assert "1 of 2 cases FAILED: fails" in evidence
    assert "## fails: FAILED" in evidence
    assert "## passes: passed" in evidence
    assert str(ROOT) not in evidence
    assert "/root/" not in evidence
    assert "soak-" not in evidence
    assert evidence in capsys.readouterr().out


def test_the_soak_passes_when_every_case_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--evidence", str(tmp_path)], {"one": passes, "two": passes}) == 0
    assert "| a figure | 1000 | pass |" in capsys.readouterr().out


async def is_stopped(scale: Scale, record: Record, directory: Path) -> None:
    raise KeyboardInterrupt


def test_what_was_seen_before_it_is_stopped_is_kept(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        main(["--evidence", str(tmp_path)], {"passes": passes, "stops": is_stopped, "waits": passes})
    (written,) = tmp_path.iterdir()
    evidence = written.read_text("utf-8")
    assert "NOT ALL CASES RAN; without an end: stops, waits." in evidence
    assert "## passes: passed" in evidence
    assert "## stops" not in evidence


def test_one_case_can_be_chosen_and_writes_nothing_unasked(capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted((ROOT / "docs").rglob("*"))
    assert main(["--case", "two", "--quick"], {"one": sees_what_must_not_be, "two": passes}) == 0
    shown = capsys.readouterr().out
    assert "## one" not in shown
    assert "| a figure | 1 | pass |" in shown
    assert sorted((ROOT / "docs").rglob("*")) == before


async def tells_its_loop(scale: Scale, record: Record, directory: Path) -> None:
    record.saw("the loop", type(asyncio.get_running_loop()).__module__, holds=True)
    record.saw("the programs' loop", os.environ["STORAGE_PROXY__LOOP"], holds=True)


def test_the_loop_can_be_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in ("STORAGE_PROXY", "MANAGER_API"):
        monkeypatch.setenv(f"{program}__LOOP", "auto")
    assert main(["--loop", "asyncio", "--evidence", str(tmp_path)], {"loop": tells_its_loop}) == 0
    shown = capsys.readouterr().out
    assert "| the loop | asyncio." in shown
    assert "| the programs' loop | asyncio |" in shown
    assert "| event loop | asyncio |" in shown
    (written,) = tmp_path.iterdir()
    assert written.name.endswith("-soak-loop-asyncio.md")


async def soak(*arguments: str, **environment: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tools.soak",
        *arguments,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, complaints = await process.communicate()
    assert process.returncode is not None
    return process.returncode, printed.decode() + complaints.decode()
