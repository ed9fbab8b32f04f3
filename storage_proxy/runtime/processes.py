"""Serving in several processes: the supervisor with its operations listener, and what each child does.

The law: a child opens everything itself, in a fresh interpreter; only addresses and one socket come from above.
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from storage_proxy.common.service.endpoints import add_endpoints, endpoints_of
from storage_proxy.common.service.listener import Listener
from storage_proxy.common.service.operations import HealthHandlers, MetricsHandlers
from storage_proxy.common.service.process import AddressTaken, serve_until_signal
from storage_proxy.common.service.reservations import reserved
from storage_proxy.common.service.supervision import supervised_by
from storage_proxy.common.service.supervisor import CannotStart, Supervisor
from storage_proxy.runtime.process import open_process
from storage_proxy.settings import ProxySettings

CHILD_COMMAND = "serve-child"
"""The hidden command that a child is begun with."""


async def supervise(settings: ProxySettings, config: Path, count: int) -> int:
    """Serve ``config`` in ``count`` processes until a signal; the exit code. Raises `AddressTaken`."""
    with ExitStack() as stack:
        options: list[str] = []
        for name, section in (("client", settings.client), ("rpc", settings.rpc)):
            if section is not None:
                try:
                    address = stack.enter_context(reserved(section.listen))
                except OSError as error:
                    raise AddressTaken(f"{name}: {error.strerror or error}") from error
                options += [f"--{name}", address]

        def command(number: int, descriptor: int) -> Sequence[str]:
            # A child imports what this process would: from the working directory only where this one was begun so.
            isolated = [] if sys.path[:1] == [str(Path.cwd())] else ["-P"]
            python = [sys.executable, *isolated, "-m", "storage_proxy"]
            program = [*python, CHILD_COMMAND, "--config", str(config), *options]
            return [*program, "--number", str(number), "--descriptor", str(descriptor)]

        shutdown = settings.shutdown
        supervisor = Supervisor(command, count, drain_seconds=shutdown.unready_seconds + shutdown.drain_seconds)
        supervisor.life.obey_signals()
        operations = Listener("operations", settings.operations.listen)
        add_endpoints(operations.app, endpoints_of(HealthHandlers(supervisor)))
        add_endpoints(operations.app, endpoints_of(MetricsHandlers(supervisor.metrics)))
        try:
            return await supervisor.run(operations)
        except CannotStart as error:  # it has said why itself
            return error.exit_code


async def serve_as_child(settings: ProxySettings, addresses: Mapping[str, str], descriptor: int) -> None:
    """Serve on ``addresses`` (listener -> address) beside others until the supervisor's order or a signal.

    ``descriptor`` is this end of the supervisor's socket. Raises as `storage_proxy.runtime.process.run`.
    """
    at = {name: getattr(settings, name).model_copy(update={"listen": address}) for name, address in addresses.items()}
    settings = settings.model_copy(update=at)
    async with (
        supervised_by(descriptor) as supervised,
        open_process(settings) as process,
        supervised.answering(process.health, process.registry),
    ):
        for listener in process.listeners:
            listener.shares_address = True
        await serve_until_signal(
            process.listeners,
            health=process.health,
            drain_seconds=settings.shutdown.drain_seconds,
            unready_seconds=settings.shutdown.unready_seconds,
            life=supervised.life,
        )
