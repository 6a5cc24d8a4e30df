"""Prints what measuring costs over Ray, in microseconds of the event loop: `python -m load_tests.meter_speed`.

Starts a Ray of its own, and measures in one of its processes, as replicas do.
"""

import argparse
import asyncio
import time
from collections.abc import Callable, Mapping

import typer

from deployments.engine.protocol import EngineStats, EngineTotals
from deployments.generator_metrics import ADAPTERS, QUEUE, STEPS, EngineReport, measure_request
from deployments.meter import Meter, NoMeter
from deployments.types import GenerateChunk, GenerateRequest, SamplingParams, Timing
from serve_app.ledger.entries import Counts
from serve_app.use_cases.callers import Caller, Dialect, Principal
from serve_app.use_cases.request_metrics import RequestMeasurement

_REPEATS = 2000
_PIECES = 20
_TIMING = Timing(0.001, 0.05, 1.0)
_REQUEST = GenerateRequest("r", "base", (1, 2, 3), SamplingParams())
_FIRST = GenerateChunk(0, (1,), "a", timing=_TIMING)
_NEXT = GenerateChunk(0, (1, 2, 3), "abc")


def request_at_the_ingress(meter: Meter) -> None:
    """A stream of some pieces."""
    measurement = RequestMeasurement(meter, Caller("r", Dialect.TOTALGPT, Principal("a", "k")), [_REQUEST])
    with measurement.running():
        for piece in (_FIRST, *[_NEXT] * (_PIECES - 1)):
            measurement.piece(piece)
        measurement.charged(Counts(3, 60))


def costs(meter: Meter) -> Mapping[str, float]:
    """Seconds of each, the mean of many."""
    report = EngineReport(meter, "base", {"imports": 1.0, "weights": 2.0})
    num_steps = 0

    def snapshot() -> None:
        nonlocal num_steps
        num_steps += 100
        report.report(EngineStats(1, 1, 1, 2, totals=EngineTotals(num_steps, num_steps / 100, num_steps, num_steps)))

    work: dict[str, Callable[[], None]] = {
        "one addition to a counter": lambda: meter.add(STEPS, 1, model="base"),
        "one observation": lambda: meter.observe(QUEUE, 0.01, model="base", adapter="no"),
        "one gauge set": lambda: meter.set(ADAPTERS, 1, model="base"),
        f"a stream of {_PIECES} pieces at the ingress": lambda: request_at_the_ingress(meter),
        "a request at the generator": lambda: measure_request(meter, _REQUEST, _TIMING, 60),
        "an engine's snapshot, each second": snapshot,
    }
    return {name: _mean(each) for name, each in work.items()}


def _mean(work: Callable[[], None]) -> float:
    for _ in range(_REPEATS // 10):
        work()
    began_at = time.perf_counter()
    for _ in range(_REPEATS):
        work()
    return (time.perf_counter() - began_at) / _REPEATS


def in_a_process_of_ray() -> Mapping[str, float]:
    import ray

    from deployments.ray_meter import RayMeter

    class Measuring:
        async def costs(self) -> Mapping[str, float]:
            await asyncio.sleep(0)
            return costs(RayMeter())

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        found: Mapping[str, float] = ray.get(ray.remote(Measuring).remote().costs.remote())
        return found
    finally:
        ray.shutdown()


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    measured, alone = in_a_process_of_ray(), costs(NoMeter())
    for name, seconds in measured.items():
        typer.echo(f"{seconds * 1e6:9.1f} us  {name} ({alone[name] * 1e6:.1f} us where nobody measures)")


if __name__ == "__main__":
    main()
