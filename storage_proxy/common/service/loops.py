"""Which event loop a program runs on: uvloop where it is installed, asyncio's own elsewhere, or as configured.

The law: everything works on both; the choice is one of speed.
"""

import asyncio
from collections.abc import Callable
from importlib.util import find_spec
from typing import Literal

LoopChoice = Literal["auto", "uvloop", "asyncio"]


def uvloop_is_installed() -> bool:
    """A dependency on Linux and macOS; nowhere else."""
    return find_spec("uvloop") is not None


def loop_factory(choice: LoopChoice) -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes the loop, for `asyncio.Runner`. Raises ImportError when uvloop is chosen and not installed."""
    if choice == "asyncio" or (choice == "auto" and not uvloop_is_installed()):
        return asyncio.SelectorEventLoop
    import uvloop

    return uvloop.new_event_loop
