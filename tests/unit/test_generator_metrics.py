"""What is measured of a generator: of its requests, its engine and its start."""

import pytest

from deployments import generator_metrics as metrics
from deployments.engine.protocol import EngineStats, EngineTotals
from deployments.generator_metrics import EngineReport, measure_request
from deployments.start_phases import StartPhases
from deployments.types import AdapterRef, GenerateRequest, SamplingParams, Timing
from tests.recording_meter import RecordingMeter

REQUEST = GenerateRequest("r", "base", (1, 2), SamplingParams())
TIMING = Timing(queue_s=0.5, first_token_s=1.0, last_token_s=4.0)


def test_a_request_has_a_queue_time_a_first_token_and_a_time_per_token() -> None:
    meter = RecordingMeter()
    measure_request(meter, REQUEST, TIMING, num_tokens=4)
    labels = {"model": "base", "adapter": "no"}
    assert meter.observed(metrics.QUEUE, **labels) == [0.5]
    assert meter.observed(metrics.FIRST_TOKEN, **labels) == [1.0]
    assert meter.observed(metrics.TOKEN, **labels) == [1.0]


def test_sequences_of_a_request_are_computed_beside_each_other() -> None:
    meter = RecordingMeter()
    request = GenerateRequest("r", "base", (1,), SamplingParams(), num_sequences=3, complete=frozenset({0}))
    measure_request(meter, request, TIMING, num_tokens=8)
    assert meter.observed(metrics.TOKEN) == [1.0]


def test_one_token_tells_nothing_of_the_next_and_no_token_nothing_at_all() -> None:
    meter = RecordingMeter()
    measure_request(meter, REQUEST, TIMING, num_tokens=1)
    assert meter.observed(metrics.TOKEN) == []
    measure_request(meter, REQUEST, None, num_tokens=0)
    assert len(meter.observed(metrics.QUEUE)) == 1


def test_of_an_adapter_only_that_there_is_one_is_told() -> None:
    meter = RecordingMeter()
    request = GenerateRequest("r", "base", (1,), SamplingParams(), adapter=AdapterRef("ft_model_x", "digest"))
    measure_request(meter, request, TIMING, num_tokens=4)
    assert meter.observed(metrics.QUEUE, adapter="yes") == [0.5]


def test_reports_add_what_was_done_since_the_last() -> None:
    meter = RecordingMeter()
    report = EngineReport(meter, "base", {})
    for steps in (3, 3, 10):
        totals = EngineTotals(steps=steps, step_s=steps / 10, step_sequences=2 * steps, cached_tokens=steps)
        report.report(EngineStats(1, 2, 25, 100, totals=totals))
    assert meter.total(metrics.STEPS, model="base") == 10
    assert meter.total(metrics.STEP_SECONDS) == pytest.approx(1.0)
    assert meter.total(metrics.STEP_SEQUENCES) == 20
    assert meter.total(metrics.CACHED_TOKENS) == 10


def test_reports_tell_how_things_stand_and_what_the_start_took() -> None:
    meter = RecordingMeter()
    phases = StartPhases(clock=iter([0.0, 2.0, 2.0, 2.5, 3.0, 4.0]).__next__)
    for phase in ("imports", "weights", "imports"):
        with phases.within(phase):
            pass
    report = EngineReport(meter, "base", phases.seconds)
    report.report(EngineStats(3, 4, 25, 100, num_pending_tokens=70, num_adapters=2, adapter_bytes=9))
    found = {
        gauge: meter.last(gauge, model="base")
        for gauge in (metrics.RUNNING, metrics.WAITING, metrics.PENDING_TOKENS, metrics.CACHE_USE, metrics.ADAPTERS)
    }
    assert list(found.values()) == [3, 4, 70, 0.75, 2]
    assert list(phases.seconds) == ["imports", "weights"]
    assert meter.last(metrics.START, model="base", phase="imports") == 3.0
    assert meter.last(metrics.START, model="base", phase="weights") == 0.5


def test_a_phase_that_fails_counts_too() -> None:
    phases = StartPhases(clock=iter([0.0, 2.0]).__next__)
    with pytest.raises(OSError), phases.within("weights"):
        raise OSError
    assert phases.seconds == {"weights": 2.0}
