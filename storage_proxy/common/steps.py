"""Named points between an effect and what follows it, where a test may end the process.

The law: outside of such a test a step does nothing. The variable ``STORAGE_PROXY_TEST_KILL_AT`` names the step, and
how often it is passed before: ``outbox-published:3`` ends the process, as by SIGKILL, when it is passed the third time.
"""

import os
import signal

VARIABLE = "STORAGE_PROXY_TEST_KILL_AT"

_name, _, _count = os.environ.get(VARIABLE, "").partition(":")
_left = int(_count or 1)


def step(name: str) -> None:
    """Pass the point ``name``."""
    global _left
    if name == _name:
        _left -= 1
        if not _left:
            os.kill(os.getpid(), signal.SIGKILL)
