"""The manager's HTTP application: its routes, its documents, and what stands around them."""

from collections.abc import Mapping

from aiohttp import hdrs, web
from prometheus_client import CollectorRegistry

from manager_api.link_handlers import LinkHandlers
from manager_api.run_handlers import RunHandlers
from storage_proxy import __version__
from storage_proxy.common.service.docs_page import DocumentHandlers
from storage_proxy.common.service.endpoints import add_endpoints, endpoints_of
from storage_proxy.common.service.listener import Listener
from storage_proxy.common.service.metrics import RequestMetrics
from storage_proxy.common.service.middleware import require_bearer
from storage_proxy.common.service.openapi import openapi_document
from storage_proxy.common.service.operations import HEALTH_PATHS, Health, HealthHandlers, MetricsHandlers
from storage_proxy.common.service.request_log import log_requests
from storage_proxy.common.wire import MAX_RPC_BODY_BYTES

QUIET_PATHS = HEALTH_PATHS | {"/metrics"}
OPEN_PATHS = QUIET_PATHS | {"/openapi.json", "/docs"}
MAX_BODY_BYTES = MAX_RPC_BODY_BYTES - (64 << 10)
"""Less than the proxy takes: what is accepted here can be passed on with its defaults written out."""

_NAME = "manager"
_DESCRIPTION = (
    "Makes links to blobs in object storage: to one blob, or to many as one resumable archive. "
    "Takes the uploads of runs, lists and deletes them."
)


def manager_listener(
    listen: str,
    *,
    api_keys: Mapping[str, str],
    links: LinkHandlers,
    runs: RunHandlers,
    health: Health,
    registry: CollectorRegistry,
) -> Listener:
    """The listener of the manager API. ``api_keys`` maps the callers' names to their secrets."""
    listener = Listener(
        _NAME,
        listen,
        RequestMetrics(registry).middleware(_NAME),
        log_requests(_NAME, quiet_paths=QUIET_PATHS),
        require_bearer(api_keys, open_paths=OPEN_PATHS),
        max_body_bytes=MAX_BODY_BYTES,
    )
    groups = {
        "Blobs and links": endpoints_of(links),
        "Runs and uploads": endpoints_of(runs),
        "Operations": [*endpoints_of(HealthHandlers(health)), *endpoints_of(MetricsHandlers(registry))],
    }
    document = openapi_document(
        groups, title="Manager API", version=__version__, description=_DESCRIPTION, open_paths=OPEN_PATHS
    )
    for endpoints in (*groups.values(), endpoints_of(DocumentHandlers(document))):
        add_endpoints(listener.app, endpoints)
    listener.app.on_response_prepare.append(_never_store)
    return listener


async def _never_store(request: web.Request, response: web.StreamResponse) -> None:
    """A link in a shared cache is a link given away."""
    response.headers.setdefault(hdrs.CACHE_CONTROL, "no-store")
