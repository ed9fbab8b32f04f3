"""The composition root: settings in, a running service out, closed in reverse order.

The law: nothing else constructs a client.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from prometheus_client import CollectorRegistry

from manager_api.access import BucketAccess
from manager_api.app import manager_listener
from manager_api.link_handlers import LinkHandlers
from manager_api.links import LinkMaker
from manager_api.metrics import ProxyCallMetrics
from manager_api.proxy_client import Deadlines, ProxyClient
from manager_api.rpc_transport import RetryPolicy, RpcTransport
from manager_api.run_handlers import RunHandlers
from manager_api.settings import ManagerSettings, ManagerTokenSettings, ProxyConnectionSettings
from storage_proxy.common.service.listener import Listener
from storage_proxy.common.service.operations import Health
from storage_proxy.common.service.process import serve_until_signal
from storage_proxy.common.tokens import TokenSigner


@dataclass(frozen=True, slots=True)
class Manager:
    """A wired manager API: its listener, not started yet."""

    listener: Listener
    health: Health


async def serve(settings: ManagerSettings) -> None:
    """Run the manager API until a signal. Raises `AddressTaken`."""
    async with open_manager(settings) as manager:
        await serve_until_signal(
            [manager.listener],
            health=manager.health,
            drain_seconds=settings.shutdown.drain_seconds,
            unready_seconds=settings.shutdown.unready_seconds,
        )


@asynccontextmanager
async def open_manager(settings: ManagerSettings) -> AsyncIterator[Manager]:
    """Wire the manager API; its client is closed on leaving."""
    registry = CollectorRegistry()
    connector = aiohttp.TCPConnector(limit=settings.proxy.rpc_max_connections)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        proxy = _proxy_client(settings.proxy, session, ProxyCallMetrics(registry))
        links = _link_maker(settings.tokens, settings.proxy.client_url)
        access = BucketAccess({key.name: key.buckets for key in settings.api_keys})
        health = Health({"proxy": proxy.probe})
        listener = manager_listener(
            settings.listen,
            api_keys={key.name: key.secret.get_secret_value() for key in settings.api_keys},
            links=LinkHandlers(proxy, links, access),
            runs=RunHandlers(proxy, links, access),
            health=health,
            registry=registry,
        )
        yield Manager(listener, health)


def _proxy_client(
    settings: ProxyConnectionSettings, session: aiohttp.ClientSession, metrics: ProxyCallMetrics
) -> ProxyClient:
    transport = RpcTransport(
        session,
        metrics,
        rpc_url=settings.rpc_url,
        rpc_secret=settings.rpc_secret.get_secret_value(),
        policy=RetryPolicy(connect_timeout=settings.rpc_connect_timeout_seconds),
    )
    deadlines = Deadlines(
        ask=settings.rpc_timeout_seconds,
        plan=settings.rpc_plan_timeout_seconds,
        complete=settings.rpc_complete_timeout_seconds,
    )
    return ProxyClient(transport, deadlines)


def _link_maker(settings: ManagerTokenSettings, client_url: str) -> LinkMaker:
    key = next(key for key in settings.key_ring() if key.kid == settings.signing_kid)
    return LinkMaker(
        TokenSigner(key, issuer=settings.issuer, audience=settings.audience),
        client_url=client_url,
        default_ttl=settings.default_ttl_seconds,
        max_ttl=settings.max_ttl_seconds,
    )
