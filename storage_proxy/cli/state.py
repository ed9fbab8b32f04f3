"""The commands for the state: as a file, and for one run's tombstone."""

import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import click

from storage_proxy.cli.output import EXIT_FAILED, finish, line
from storage_proxy.common.service.commands import config_option, load_or_exit
from storage_proxy.lifecycle.runs import RunStillDeleting
from storage_proxy.lifecycle.state_file import StateFileError
from storage_proxy.runtime.jobs import clear_tombstone, export_to, import_from
from storage_proxy.settings import ProxySettings

_file_argument = click.argument("file", type=click.Path(path_type=Path))


@click.group()
def run() -> None:
    """One run."""


@run.command(name="clear-tombstone")
@click.argument("run_id")
@config_option
@click.option("--force", is_flag=True, help="Also while its objects are being removed.")
def clear(run_id: str, config: Path, force: bool) -> None:
    """Forget that a run was deleted, so that its id can be used again."""
    settings = load_or_exit(ProxySettings, config)
    try:
        was_there = finish(settings, clear_tombstone(settings, run_id, force=force))
    except RunStillDeleting as error:
        click.echo(f"{error}: wait, or use --force", err=True)
        sys.exit(EXIT_FAILED)
    line(run_id=run_id, cleared=was_there)


@click.group()
def state() -> None:
    """The whole state as a file."""


@state.command(name="export")
@_file_argument
@config_option
def export(file: Path, config: Path) -> None:
    """Write the state to FILE as of one moment, as NDJSON."""
    line(exported=_moved(file, config, export_to))


@state.command(name="import")
@_file_argument
@config_option
def import_file(file: Path, config: Path) -> None:
    """Read FILE into an empty state."""
    line(imported=_moved(file, config, import_from))


def _moved(file: Path, config: Path, work: Callable[[ProxySettings, Path], Coroutine[Any, Any, int]]) -> int:
    """How many rows ``work`` moved between the state and the file."""
    settings = load_or_exit(ProxySettings, config)
    try:
        return finish(settings, work(settings, file))
    except StateFileError as error:
        click.echo(f"{file}: {error}", err=True)
        sys.exit(EXIT_FAILED)
