"""A meter that keeps what it was given, and takes nothing that Prometheus would not."""

from collections import defaultdict

from deployments.meter import Counter, Gauge, Histogram, Metric

Labels = frozenset[tuple[str, str]]


class RecordingMeter:
    """By the metric's name and its labels: sums of counters, last values of gauges, observations in order."""

    def __init__(self) -> None:
        self.counters: dict[tuple[str, Labels], float] = defaultdict(float)
        self.gauges: dict[tuple[str, Labels], float] = {}
        self.observations: dict[tuple[str, Labels], list[float]] = defaultdict(list)

    def add(self, counter: Counter, amount: float, **labels: str) -> None:
        assert amount >= 0
        self.counters[_key(counter, labels)] += amount

    def set(self, gauge: Gauge, value: float, **labels: str) -> None:
        self.gauges[_key(gauge, labels)] = value

    def observe(self, histogram: Histogram, value: float, **labels: str) -> None:
        assert value >= 0
        self.observations[_key(histogram, labels)].append(value)

    def total(self, counter: Counter, **labels: str) -> float:
        """The sum over all that have these labels."""
        return sum(
            amount
            for (name, found), amount in self.counters.items()
            if name == counter.name and labels.items() <= dict(found).items()
        )

    def last(self, gauge: Gauge, **labels: str) -> float:
        return self.gauges[_key(gauge, labels)]

    def observed(self, histogram: Histogram, **labels: str) -> list[float]:
        return [
            value
            for (name, found), values in self.observations.items()
            if name == histogram.name and labels.items() <= dict(found).items()
            for value in values
        ]


def _key(metric: Metric, labels: dict[str, str]) -> tuple[str, Labels]:
    assert labels.keys() == set(metric.labels), f"{metric.name} has the labels {metric.labels}"
    return metric.name, frozenset(labels.items())
