from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from storage_proxy.common.service.merged_metrics import MergedMetrics, told_metrics


class OneProcess:
    """The metrics of a process, really collected."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("requests", "Answered", ["status"], registry=self.registry)
        self.active = Gauge("active", "Running", registry=self.registry)
        self.seconds = Histogram("seconds", "Taken", buckets=(1, 5), registry=self.registry)


def shown(merged: MergedMetrics) -> dict[tuple[str, tuple[str, ...]], float]:
    """What a scraper reads."""
    families = text_string_to_metric_families(generate_latest(merged).decode())
    return {(each.name, tuple(each.labels.values())): each.value for family in families for each in family.samples}


def tell(merged: MergedMetrics, **processes: OneProcess) -> None:
    for name, process in processes.items():
        merged.tell(int(name.removeprefix("p")), told_metrics(process.registry))


def test_samples_of_one_name_and_labels_are_added_up() -> None:
    one, two, merged = OneProcess(), OneProcess(), MergedMetrics()
    one.requests.labels("200").inc(3)
    two.requests.labels("200").inc(4)
    two.requests.labels("404").inc()
    one.active.set(2)
    two.active.set(5)
    one.seconds.observe(0.5)
    two.seconds.observe(3)
    tell(merged, p1=one, p2=two)
    told = shown(merged)
    assert told["requests_total", ("200",)] == 7
    assert told["requests_total", ("404",)] == 1
    assert told["active", ()] == 7
    assert [told["seconds_bucket", (le,)] for le in ("1.0", "5.0", "+Inf")] == [1, 2, 2]
    assert (told["seconds_count", ()], told["seconds_sum", ()]) == (2, 3.5)


def test_telling_again_replaces_what_was_told() -> None:
    one, merged = OneProcess(), MergedMetrics()
    one.requests.labels("200").inc()
    tell(merged, p1=one)
    one.requests.labels("200").inc()
    tell(merged, p1=one)
    assert shown(merged)["requests_total", ("200",)] == 2


def test_counters_of_an_ended_process_stay_and_its_gauges_go() -> None:
    one, again, merged = OneProcess(), OneProcess(), MergedMetrics()
    one.requests.labels("200").inc(3)
    one.active.set(2)
    one.seconds.observe(3)
    tell(merged, p1=one)
    merged.end(1)
    assert shown(merged)["requests_total", ("200",)] == 3
    assert ("active", ()) not in shown(merged)
    again.requests.labels("200").inc()
    tell(merged, p1=again)
    told = shown(merged)
    assert told["requests_total", ("200",)] == 4
    assert (told["active", ()], told["seconds_count", ()]) == (0, 1)


def test_a_counters_creation_is_that_of_the_first() -> None:
    one, two, merged = OneProcess(), OneProcess(), MergedMetrics()
    for each in (one, two):
        each.requests.labels("200").inc()
    tell(merged, p1=two, p2=one)
    (first,) = (
        sample.value
        for metric in told_metrics(one.registry)
        for sample in metric.samples
        if sample.name == "requests_created"
    )
    assert shown(merged)["requests_created", ("200",)] == first


def test_a_process_that_never_told_may_end() -> None:
    merged = MergedMetrics()
    merged.end(1)
    assert shown(merged) == {}
