"""The command line of the storage proxy."""

from pathlib import Path

import click

from storage_proxy import __version__
from storage_proxy.common.service.commands import config_option, load_or_exit, run_service
from storage_proxy.runtime.proxy import serve as run_proxy
from storage_proxy.settings import ProxySettings


@click.group()
@click.version_option(__version__, prog_name="storage-proxy")
def main() -> None:
    """Token-based downloads, streamed straight from object storage."""


@main.command()
@config_option
def serve(config: Path) -> None:
    """Serve clients and the manager until SIGTERM."""
    settings = load_or_exit(ProxySettings, config)
    run_service(settings, run_proxy(settings))


@main.command(name="all")
@config_option
def everything(config: Path) -> None:
    """Run everything in one process: today the same as serve."""
    settings = load_or_exit(ProxySettings, config)
    run_service(settings, run_proxy(settings))


@main.command()
@config_option
def check_config(config: Path) -> None:
    """Check the configuration: exit 2 and one line per problem."""
    load_or_exit(ProxySettings, config)
    click.echo("the configuration is valid")
