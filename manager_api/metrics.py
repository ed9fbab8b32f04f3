"""What the manager counts about its calls to the storage proxy."""

from prometheus_client import CollectorRegistry, Counter, Histogram

_SECONDS = (0.005, 0.02, 0.1, 0.5, 1, 5, 20, 60, float("inf"))


class ProxyCallMetrics:
    """The metrics of RPC calls, in ``registry``. ``operation`` is the client's method, ``code`` the error's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.seconds = Histogram(
            "manager_api_proxy_call_seconds",
            "Duration of calls to the storage proxy, retries included",
            ["operation"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.errors = Counter(
            "manager_api_proxy_call_errors",
            "Calls to the storage proxy that failed",
            ["operation", "code"],
            registry=registry,
        )
        self.retries = Counter(
            "manager_api_proxy_call_retries",
            "Calls to the storage proxy that were tried again",
            ["operation"],
            registry=registry,
        )
