"""What the end of blobs counts."""

from prometheus_client import CollectorRegistry, Counter, Gauge


class LifecycleMetrics:
    """The metrics of relay, control worker and sweeper, in ``registry``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.relay_active = Gauge(
            "storage_proxy_relay_active", "1 in the process whose relay works, 0 where it stands by", registry=registry
        )
        self.outbox_rows = Gauge(
            "storage_proxy_outbox_rows", "Events that wait for the relay, counted up to 10000", registry=registry
        )
        self.outbox_oldest_seconds = Gauge(
            "storage_proxy_outbox_oldest_seconds", "Age of the oldest event that waits for the relay", registry=registry
        )
        self.published = Counter(
            "storage_proxy_relay_published", "Events of the outbox that were published", ["topic"], registry=registry
        )
        self.relay_errors = Counter(
            "storage_proxy_relay_errors", "Rounds of the relay that failed", ["code"], registry=registry
        )
        self.run_passes = Counter(
            "storage_proxy_run_passes",
            "Passes over deleted runs, by pass and outcome",
            ["run_pass", "outcome"],
            registry=registry,
        )
        self.erased = Counter(
            "storage_proxy_run_objects_erased",
            "Objects, versions and uploads of deleted runs that were removed",
            ["bucket"],
            registry=registry,
        )
        self.poison = Counter(
            "storage_proxy_control_poison",
            "Messages of the control topic that can never be processed",
            registry=registry,
        )
        self.sweeps_overdue = Gauge(
            "storage_proxy_sweeps_overdue",
            "Deleted runs whose second pass is due and failed last time",
            registry=registry,
        )
