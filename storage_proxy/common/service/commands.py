"""What the command lines of both programs share: settings or exit 2, a service or exit 1."""

import asyncio
import resource
import sys
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from storage_proxy.common.errors import ServiceError
from storage_proxy.common.service.logs import configure_logs
from storage_proxy.common.service.loops import loop_factory
from storage_proxy.common.service.process import AddressTaken
from storage_proxy.common.service.settings import InvalidSettings, ServiceSettings

_Settings = TypeVar("_Settings", bound=ServiceSettings)

config_option = click.option(
    "--config", "config", required=True, type=click.Path(path_type=Path), help="The TOML file with the settings."
)


def load_or_exit(settings_class: type[_Settings], config: Path) -> _Settings:
    """The settings of ``config``; on problems one line each on stderr and exit 2."""
    try:
        return settings_class.load(config)
    except InvalidSettings as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        sys.exit(2)


def run_service(
    settings: ServiceSettings, service: Coroutine[Any, Any, int | None], *, process: int | None = None
) -> NoReturn:
    """Run ``service`` to its end and exit: 0 after a drain, or what it says; 1 with one line when it cannot start.

    ``process`` is this one's number among several.
    """
    configure_logs(settings.environment, process=process)
    _raise_file_limit()
    try:
        with asyncio.Runner(loop_factory=loop_factory(settings.loop)) as runner:
            code = runner.run(service)
    except AddressTaken as error:
        click.echo(f"cannot listen: {error}", err=True)
        sys.exit(1)
    except ServiceError as error:
        click.echo(f"cannot start: {error.detail}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code or 0)


def _raise_file_limit() -> None:
    """Allow as many open files as the system lets this process have: many systems begin at 1,024, for `select`."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS has a limit below its "infinite"
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
