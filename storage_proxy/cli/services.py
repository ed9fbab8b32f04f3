"""The commands that run until a signal, and the check of their configuration."""

import sys
from pathlib import Path

import click

from storage_proxy.common.service.commands import config_option, load_or_exit, run_service
from storage_proxy.runtime.process import ALL_ROLES, run
from storage_proxy.runtime.processes import CHILD_COMMAND, serve_as_child, supervise
from storage_proxy.runtime.workers import Role
from storage_proxy.settings import ProxySettings

MAX_PROCESSES = 64


@click.command()
@config_option
@click.option(
    "--processes",
    type=click.IntRange(1, MAX_PROCESSES),
    default=1,
    show_default=True,
    help="Serve in so many processes, each with a loop and limits of its own.",
)
def serve(config: Path, processes: int) -> None:
    """Serve clients and the manager until SIGTERM."""
    settings = _with_listeners(config)
    run_service(settings, run(settings, serving=True) if processes == 1 else supervise(settings, config, processes))


@click.command(name=CHILD_COMMAND, hidden=True)
@config_option
@click.option("--client", help="The client listener's address.")
@click.option("--rpc", help="The RPC listener's address.")
@click.option("--number", type=int, required=True)
@click.option("--descriptor", type=int, required=True, help="This end of the supervisor's socket.")
def serve_child(config: Path, client: str | None, rpc: str | None, number: int, descriptor: int) -> None:
    """Serve as one of several processes: begun by `serve --processes`, by nobody else."""
    settings = _with_listeners(config)
    addresses = {name: address for name, address in (("client", client), ("rpc", rpc)) if address is not None}
    run_service(settings, serve_as_child(settings, addresses, descriptor), process=number)


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
