"""Named points between an effect and what follows it, where a test may end the process.

The law: outside of such a test a step does nothing. The variable ``STORAGE_PROXY_TEST_KILL_AT`` names the step, and
how often it is passed before: ``outbox-published:3`` ends the process, as by SIGKILL, when it is passed the third time.
``STORAGE_PROXY_TEST_STOP_AT`` is the same, and stops it, as by SIGSTOP, until somebody lets it go on.
"""

import os
import signal

VARIABLE = "STORAGE_PROXY_TEST_KILL_AT"
STOP_VARIABLE = "STORAGE_PROXY_TEST_STOP_AT"

_is_to_stop = STOP_VARIABLE in os.environ
_name, _, _count = os.environ.get(STOP_VARIABLE if _is_to_stop else VARIABLE, "").partition(":")
_left = int(_count or 1)


def step(name: str) -> None:
    """Pass the point ``name``."""
    global _left
    if name == _name:
        _left -= 1
        if not _left:
            os.kill(os.getpid(), signal.SIGSTOP if _is_to_stop else signal.SIGKILL)
