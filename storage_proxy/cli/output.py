"""What commands with an end print: progress for a person at a terminal, else one JSON line per result.

The law: results go to stdout and nothing else does; an exit code says how it ended.
"""

import asyncio
import json
import sys
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

import click

from storage_proxy.common.errors import ServiceError
from storage_proxy.common.service.logs import configure_logs
from storage_proxy.common.service.settings import ServiceSettings
from storage_proxy.lifecycle.jobs import JobProgress
from storage_proxy.lifecycle.locks import LockHeld, LockLost

EXIT_FAILED = 1
EXIT_LOCKED = 75
"""EX_TEMPFAIL: another instance is at work; try later."""

_T = TypeVar("_T")


def finish(settings: ServiceSettings, work: Coroutine[Any, Any, _T]) -> _T:
    """What ``work`` returns; or its failure as one line on stderr, and an exit code."""
    configure_logs(settings.environment)
    try:
        return asyncio.run(work)
    except LockHeld as error:
        _end(EXIT_LOCKED, str(error))
    except LockLost as error:
        _end(EXIT_FAILED, str(error))
    except ServiceError as error:
        _end(EXIT_FAILED, error.detail)
    except OSError as error:
        _end(EXIT_FAILED, f"{error.filename or 'the file'}: {error.strerror}")
    except KeyboardInterrupt:
        sys.exit(130)


def line(**result: object) -> None:
    """One result as a JSON line."""
    click.echo(json.dumps(result, ensure_ascii=False))


class JobOutput:
    """The progress of one job."""

    def __init__(self, name: str, *, dry_run: bool) -> None:
        self._name = name
        self._dry_run = dry_run
        self._is_terminal = sys.stdout.isatty()

    def report(self, progress: JobProgress) -> None:
        """A step of the job: what it named, and how far it is."""
        for name in progress.names:
            if self._is_terminal:
                click.echo(f"\r\033[K{'would remove' if self._dry_run else 'removing'} {json.dumps(name)}")
            else:
                line(job=self._name, name=name, dry_run=self._dry_run)
        if self._is_terminal:
            click.echo(f"\r\033[K{_words(progress)}", nl=False)

    def result(self, progress: JobProgress) -> None:
        """The end of the job."""
        if self._is_terminal:
            click.echo(f"\r\033[K{self._name}: {_words(progress)}")
            return
        counts = {"looked_at": progress.looked_at, "found": progress.found, "removed": progress.removed}
        line(job=self._name, **counts, dry_run=self._dry_run)


def _words(progress: JobProgress) -> str:
    return f"{progress.looked_at:,} looked at, {progress.found:,} found, {progress.removed:,} removed"


def _end(code: int, message: str) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(code)
