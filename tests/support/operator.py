"""The commands of the storage proxy as an operator gives them, and what they print."""

import asyncio
import json
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.programs import ROOT

Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended, and what it printed."""

    code: int
    lines: Sequence[dict[str, Any]]
    complaint: str


@dataclass(frozen=True, slots=True)
class State:
    """The rows of an exported state file, by table and key."""

    tables: Mapping[str, Mapping[Key, Mapping[str, Any]]]

    def rows(self, table: str) -> Mapping[Key, Mapping[str, Any]]:
        return self.tables.get(table, {})


class Operator:
    """Somebody with a shell and the configuration file."""

    def __init__(self, config: Path) -> None:
        self.config = config

    async def begin(self, *command: str, **environment: str) -> asyncio.subprocess.Process:
        """Start a command, and do not wait for its end."""
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "storage_proxy",
            *command,
            "--config",
            str(self.config),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | environment,
        )

    async def ask(self, *command: str, **environment: str) -> Ended:
        """Run a command to its end."""
        return await ended(await self.begin(*command, **environment))

    async def tell(self, *command: str) -> Sequence[dict[str, Any]]:
        """Run a command that has to succeed; the JSON lines that it printed."""
        end = await self.ask(*command)
        assert end.code == 0, f"{command}: {end}"
        return end.lines

    async def state(self) -> State:
        """What `state export` writes."""
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "state.ndjson"
            await self.tell("state", "export", str(path))
            return read_state(path)

    async def dead_letters(self) -> Sequence[dict[str, Any]]:
        return await self.tell("dead-letters", "list")


async def ended(process: asyncio.subprocess.Process) -> Ended:
    """Wait for the end of a command."""
    printed, complaint = await process.communicate()
    assert process.returncode is not None
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith(b"{")]
    return Ended(process.returncode, lines, complaint.decode(errors="replace"))


def read_state(path: Path) -> State:
    """The rows of a state file."""
    tables: defaultdict[str, dict[Key, dict[str, Any]]] = defaultdict(dict)
    for line in path.read_text("utf-8").splitlines()[1:-1]:
        row = json.loads(line)
        key = tuple(element if not isinstance(element, dict) else element["bytes"] for element in row["key"])
        tables[row["table"]][key] = row["value"]
    return State(tables)
