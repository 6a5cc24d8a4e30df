"""What is measured, as the code that measures sees it: counters, gauges and histograms with names. Pure.

Labels take few values: ids of configured models, dialects, outcomes; never what a client wrote.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

LATENCIES_S = (
    *(0.005, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.25, 0.4, 0.6),
    *(1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 60.0, 180.0, 600.0),
)
"""Upper bounds, for what takes from milliseconds to the longest request."""
SHORT_LATENCIES_S = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02),
    *(0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0),
)
"""The same for a token, or for what must not be felt."""


@dataclass(frozen=True, slots=True)
class Counter:
    """Only ever grows. The name ends with `_total`."""

    name: str
    help: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Gauge:
    """How things stand. One that is not set again every few seconds is forgotten."""

    name: str
    help: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many observations lie under each of `bounds`, and their sum to the precision that these allow."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    bounds: Sequence[float] = LATENCIES_S


Metric: TypeAlias = Counter | Gauge | Histogram


class Meter(Protocol):
    """Where measurements go; each takes microseconds, so it is for requests and steps, not for tokens.

    Every label of the metric is given, and no other. To be used from one thread.
    """

    def add(self, counter: Counter, amount: float, **labels: str) -> None:
        """An amount of 0 changes nothing."""

    def set(self, gauge: Gauge, value: float, **labels: str) -> None: ...

    def observe(self, histogram: Histogram, value: float, **labels: str) -> None: ...


class NoMeter:
    """Implements `Meter` where nobody looks."""

    def add(self, counter: Counter, amount: float, **labels: str) -> None:
        pass

    def set(self, gauge: Gauge, value: float, **labels: str) -> None:
        pass

    def observe(self, histogram: Histogram, value: float, **labels: str) -> None:
        pass
