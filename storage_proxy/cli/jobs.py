"""The commands that clean up, and those for dead letters."""

from collections import Counter
from pathlib import Path

import click

from storage_proxy.bus.dead_letters import described
from storage_proxy.cli.output import JobOutput, finish, line
from storage_proxy.common.service.commands import config_option, load_or_exit
from storage_proxy.ingest.reconciler import Found
from storage_proxy.runtime.jobs import (
    CLEANUPS,
    clean_up,
    list_dead_letters,
    reconcile_pending,
    replay_dead_letters,
)
from storage_proxy.settings import ProxySettings

RECONCILE = "reconcile-pending"
_limit_option = click.option("--limit", type=click.IntRange(min=1), help="At most so many.")


@click.command()
@click.argument("name", type=click.Choice([*CLEANUPS, RECONCILE]))
@config_option
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@_limit_option
def job(name: str, config: Path, dry_run: bool, limit: int | None) -> None:
    """Run a clean-up job to its end; exit 75 when another instance of it runs.

    \b
    cleanup-orphans     objects under runs/ that no record knows
    cleanup-tombstones  deleted runs that were swept long ago
    cleanup-manifests   lists of entries that no link can name any more
    cleanup-expired     links that are over, checksums of objects that are gone
    reconcile-pending   announced blobs that are due to be looked at again
    """
    settings = load_or_exit(ProxySettings, config)
    if name == RECONCILE:
        finish(settings, _reconcile(settings, dry_run=dry_run, limit=limit))
        return
    output = JobOutput(name, dry_run=dry_run)
    output.result(finish(settings, clean_up(name, settings, dry_run=dry_run, limit=limit, report=output.report)))


@click.group()
def dead_letters() -> None:
    """Messages that could not be processed."""


@dead_letters.command(name="list")
@config_option
def list_letters(config: Path) -> None:
    """Show those that have not been replayed, one JSON line each."""
    settings = load_or_exit(ProxySettings, config)
    finish(settings, _list(settings))


@dead_letters.command()
@config_option
@_limit_option
def replay(config: Path, limit: int | None) -> None:
    """Send them to their topic again, where they keep their old place in the order."""
    settings = load_or_exit(ProxySettings, config)
    line(replayed=finish(settings, replay_dead_letters(settings, limit=limit)))


async def _reconcile(settings: ProxySettings, *, dry_run: bool, limit: int | None) -> None:
    total: Counter[Found] = Counter()
    async for counts in reconcile_pending(settings, dry_run=dry_run, limit=limit):
        total += counts
    line(job=RECONCILE, **{found.value: total[found] for found in Found}, dry_run=dry_run)


async def _list(settings: ProxySettings) -> None:
    async for letters in list_dead_letters(settings):
        for letter in letters:
            line(**described(letter))
