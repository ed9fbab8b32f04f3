"""The metrics of several processes as those of one service.

The law: samples of one name and labels are added up, and a counter never goes backward: what an ended process had
counted stays counted, as it last told.
"""

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector
from pydantic import BaseModel

_CUMULATIVE = frozenset({"counter", "histogram", "summary"})
_CREATED = "_created"


class ToldSample(BaseModel):
    """One sample."""

    name: str
    labels: dict[str, str]
    value: float


class ToldMetric(BaseModel):
    """One metric with its samples, as one process tells another."""

    name: str
    documentation: str
    kind: str
    samples: list[ToldSample]


def told_metrics(registry: CollectorRegistry) -> list[ToldMetric]:
    """The metrics of ``registry`` now."""
    return [
        ToldMetric(
            name=metric.name,
            documentation=metric.documentation,
            kind=metric.type,
            samples=[ToldSample(name=each.name, labels=each.labels, value=each.value) for each in metric.samples],
        )
        for metric in registry.collect()
    ]


class _Sum:
    """Metrics added up: in the order in which their samples were first seen."""

    def __init__(self) -> None:
        self._metrics: dict[str, ToldMetric] = {}
        self._samples: dict[tuple[str, tuple[tuple[str, str], ...]], ToldSample] = {}

    def add(self, metrics: Iterable[ToldMetric]) -> None:
        for metric in metrics:
            known = self._metrics.get(metric.name)
            if known is None:
                known = self._metrics[metric.name] = metric.model_copy(update={"samples": []})
            for sample in metric.samples:
                self._add(known, sample)

    def _add(self, metric: ToldMetric, sample: ToldSample) -> None:
        key = sample.name, tuple(sorted(sample.labels.items()))
        known = self._samples.get(key)
        if known is None:
            metric.samples.append(self._samples.setdefault(key, sample.model_copy()))
        elif metric.kind in _CUMULATIVE and sample.name.endswith(_CREATED):
            known.value = min(known.value, sample.value)
        else:
            known.value += sample.value

    def __iter__(self) -> Iterator[ToldMetric]:
        return iter(self._metrics.values())


class MergedMetrics(Collector):
    """What numbered processes last told, and what those before them had counted."""

    def __init__(self) -> None:
        self._told: dict[int, Sequence[ToldMetric]] = {}
        self._ended = _Sum()

    def tell(self, process: int, metrics: Sequence[ToldMetric]) -> None:
        """``metrics`` are those of ``process`` now."""
        self._told[process] = metrics

    def end(self, process: int) -> None:
        """The process has ended: its counters stay, its gauges go. Another one may tell under its number."""
        told = self._told.pop(process, ())
        self._ended.add(metric for metric in told if metric.kind in _CUMULATIVE)

    def collect(self) -> Iterator[Metric]:
        """The sums."""
        total = _Sum()
        total.add(self._ended)
        for told in self._told.values():
            total.add(told)
        for metric in total:
            made = Metric(metric.name, metric.documentation, metric.kind)
            for sample in metric.samples:
                made.add_sample(sample.name, sample.labels, sample.value)
            yield made
