"""Measurements over Ray: each process hands its own to Ray's agent of the machine, which Prometheus scrapes.

Ray puts `ray_` before every name, and adds the worker as a label.
"""

from typing import Any

from ray.util import metrics

from deployments.meter import Counter, Gauge, Histogram


class RayMeter:
    """Implements `deployments.meter.Meter`. Ray's agent rebuilds sums of histograms from their bounds."""

    def __init__(self) -> None:
        self._instruments: dict[str, Any] = {}

    def add(self, counter: Counter, amount: float, **labels: str) -> None:
        if amount:
            self._instrument(counter).inc(amount, labels)

    def set(self, gauge: Gauge, value: float, **labels: str) -> None:
        self._instrument(gauge).set(value, labels)

    def observe(self, histogram: Histogram, value: float, **labels: str) -> None:
        self._instrument(histogram).observe(value, labels)

    def _instrument(self, metric: Counter | Gauge | Histogram) -> Any:
        found = self._instruments.get(metric.name)
        if found is None:
            found = self._instruments[metric.name] = _make(metric)
        return found


def _make(metric: Counter | Gauge | Histogram) -> Any:
    match metric:
        case Counter():
            return metrics.Counter(metric.name, metric.help, metric.labels)
        case Gauge():
            return metrics.Gauge(metric.name, metric.help, metric.labels)
        case Histogram():
            return metrics.Histogram(metric.name, metric.help, list(metric.bounds), metric.labels)
