"""The commands that run until a signal, and the check of their configuration."""

import sys
from pathlib import Path

import click

from storage_proxy.common.service.commands import config_option, load_or_exit, run_service
from storage_proxy.runtime.process import ALL_ROLES, run
from storage_proxy.runtime.workers import Role
from storage_proxy.settings import ProxySettings


@click.command()
@config_option
def serve(config: Path) -> None:
    """Serve clients and the manager until SIGTERM."""
    settings = _with_listeners(config)
    run_service(settings, run(settings, serving=True))


@click.command()
@click.argument("role", type=click.Choice([*(role.value for role in Role), "all"]))
@config_option
def worker(role: str, config: Path) -> None:
    """Work in the background until SIGTERM.

    ingest verifies and records announced blobs; control publishes events and removes what deleted runs leave.
    """
    settings = load_or_exit(ProxySettings, config)
    roles = ALL_ROLES if role == "all" else {Role(role)}
    run_service(settings, run(settings, serving=False, roles=roles))


@click.command(name="all")
@config_option
def everything(config: Path) -> None:
    """Serve, and work in every role, in one process."""
    settings = _with_listeners(config)
    run_service(settings, run(settings, serving=True, roles=ALL_ROLES))


@click.command()
@config_option
def check_config(config: Path) -> None:
    """Check the configuration: exit 2 and one line per problem."""
    load_or_exit(ProxySettings, config)
    click.echo("the configuration is valid")


def _with_listeners(config: Path) -> ProxySettings:
    settings = load_or_exit(ProxySettings, config)
    if settings.client is None and settings.rpc is None:
        click.echo("client: neither a client nor an rpc listener is configured", err=True)
        sys.exit(2)
    return settings
