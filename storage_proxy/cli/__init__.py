"""The command line of the storage proxy."""

import click

from storage_proxy import __version__
from storage_proxy.cli import jobs, services, state


@click.group()
@click.version_option(__version__, prog_name="storage-proxy")
def main() -> None:
    """Token-based downloads and uploads, streamed straight from and to object storage."""


for command in (
    services.serve,
    services.serve_child,
    services.worker,
    services.everything,
    services.check_config,
    jobs.job,
    jobs.dead_letters,
    state.run,
    state.state,
):
    main.add_command(command)
