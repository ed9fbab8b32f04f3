"""The command line of the manager API."""

from pathlib import Path

import click

from manager_api.runtime import serve as run_manager
from manager_api.settings import ManagerSettings
from storage_proxy import __version__
from storage_proxy.common.service.commands import config_option, load_or_exit, run_service


@click.group()
@click.version_option(__version__, prog_name="manager-api")
def main() -> None:
    """Decides who may download, and makes the links."""


@main.command()
@config_option
def serve(config: Path) -> None:
    """Serve the manager API until SIGTERM."""
    settings = load_or_exit(ManagerSettings, config)
    run_service(settings, run_manager(settings))


@main.command()
@config_option
def check_config(config: Path) -> None:
    """Check the configuration: exit 2 and one line per problem."""
    load_or_exit(ManagerSettings, config)
    click.echo("the configuration is valid")
