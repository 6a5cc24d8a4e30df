"""What is measured of requests that ask for text."""

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from deployments.config import ModelConfig
from deployments.errors import (
    EngineDead,
    GenerationFailed,
    InvalidParameter,
    OutOfCredits,
    Overloaded,
    RateLimited,
    ReplicaLost,
)
from deployments.graph import Graph
from deployments.types import (
    AdapterRef,
    FinishReason,
    GenerateChunk,
    GenerateRequest,
    GenerateResult,
    SamplingParams,
    TextPrompt,
    Timing,
    Usage,
)
from serve_app.config import DialectLimits, LimitsConfig, WindowConfig
from serve_app.use_cases import admission, request_metrics
from serve_app.use_cases.callers import Caller, Dialect, Principal
from serve_app.use_cases.generate import GenerateCommand, TextGeneration
from serve_app.use_cases.request_metrics import RequestMeasurement, outcome_of
from tests.fakes import FakeAdmissionStore, FakeGenerator, FakeTokenizer, make_admission, make_models
from tests.recording_meter import RecordingMeter

MODELS = make_models(ModelConfig(id="base", source="/models/base"))


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def make_caller(received_at: float = 100.0) -> Caller:
    return Caller("r", Dialect.INFERKIT, Principal("alice", "key-of-alice"), received_at=received_at)


def make_request(**fields: Any) -> GenerateRequest:
    return GenerateRequest("r", "base", (1, 2), SamplingParams(), **fields)


def measured(meter: RecordingMeter, clock: Clock, *requests: GenerateRequest) -> RequestMeasurement:
    return RequestMeasurement(meter, make_caller(), requests or (make_request(),), clock)


def chunk(num_tokens: int, timing: Timing | None = None) -> GenerateChunk:
    return GenerateChunk(0, tuple(range(num_tokens)), "text", timing=timing)


def result(timing: Timing) -> GenerateResult:
    return GenerateResult((), None, Usage(1, 1), timing)


def test_a_stream_has_a_first_token_a_time_per_token_and_what_was_not_its_engine() -> None:
    meter, clock = RecordingMeter(), Clock()
    measurement = measured(meter, clock)
    with measurement.running():
        clock.time = 101.0
        measurement.piece(chunk(1, Timing(0.25, 0.75, 0.75)))
        clock.time = 102.0
        measurement.piece(chunk(3))
        clock.time = 103.0
        measurement.piece(chunk(1, Timing(0.25, 0.75, 2.5)))
        clock.time = 104.0
    labels = {"dialect": "inferkit", "model": "base", "adapter": "no"}
    assert meter.observed(request_metrics.FIRST_TOKEN, **labels) == [1.0]
    assert meter.observed(request_metrics.FRAMEWORK, **labels) == [0.25]
    assert meter.observed(request_metrics.TOKEN, **labels) == [0.5]
    assert meter.observed(request_metrics.DURATION, stream="yes", **labels) == [4.0]


def test_a_whole_answer_waits_for_the_slowest_of_its_prompts() -> None:
    meter, clock = RecordingMeter(), Clock()
    measurement = measured(meter, clock, make_request(), make_request())
    with measurement.running():
        clock.time = 105.0
        measurement.whole([result(Timing(0, 1, 2)), result(Timing(0, 1, 4))])
    assert meter.observed(request_metrics.FRAMEWORK) == [1.0]
    assert meter.observed(request_metrics.DURATION, stream="no") == [5.0]
    assert meter.observed(request_metrics.FIRST_TOKEN) == meter.observed(request_metrics.TOKEN) == []


def test_sequences_of_all_prompts_are_streamed_beside_each_other() -> None:
    meter, clock = RecordingMeter(), Clock()
    measurement = measured(meter, clock, make_request(num_sequences=2), make_request(num_sequences=2))
    with measurement.running():
        measurement.piece(chunk(1))
        clock.time = 102.0
        measurement.piece(chunk(8))
    assert meter.observed(request_metrics.TOKEN) == [1.0]


def test_a_request_with_an_adapter_is_told_apart() -> None:
    meter = RecordingMeter()
    with measured(meter, Clock(), make_request(adapter=AdapterRef("ft_model_x", "digest"))).running():
        pass
    assert meter.total(request_metrics.REQUESTS, adapter="yes", outcome="completed") == 1


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (RateLimited("slow", 1.0), "refused"),
        (OutOfCredits(), "refused"),
        (Overloaded("full"), "overloaded"),
        (ReplicaLost("gone", 1.0), "overloaded"),
        (InvalidParameter("no", "prompt"), "invalid"),
        (GenerationFailed("no"), "failed"),
        (EngineDead("no"), "failed"),
        (ZeroDivisionError(), "failed"),
    ],
)
def test_outcomes_are_few_words(error: Exception, outcome: str) -> None:
    assert outcome_of(error) == outcome


@pytest.mark.parametrize(
    ("leave", "outcome"),
    [(GenerationFailed("no"), "failed"), (asyncio.CancelledError(), "cancelled"), (GeneratorExit(), "cancelled")],
)
def test_a_request_without_a_whole_answer_has_no_duration(leave: BaseException, outcome: str) -> None:
    meter = RecordingMeter()
    with pytest.raises(type(leave)), measured(meter, Clock()).running():
        raise leave
    assert meter.total(request_metrics.REQUESTS, outcome=outcome) == meter.total(request_metrics.REQUESTS) == 1
    assert meter.observed(request_metrics.DURATION) == []


def make_generation(
    meter: RecordingMeter, generator: FakeGenerator, limits: LimitsConfig | None = None
) -> TextGeneration:
    graph = Graph(tokenizer=FakeTokenizer(), generators={"base": generator})
    return TextGeneration(graph, MODELS, make_admission(FakeAdmissionStore(), limits=limits, meter=meter), meter)


def command(dialect: Dialect = Dialect.TOTALGPT) -> GenerateCommand:
    caller = Caller("r", dialect, Principal("alice", "key-of-alice"))
    return GenerateCommand(caller, "base", (TextPrompt("hello"),), SamplingParams(), max_tokens=20)


async def test_whole_answers_and_streams_count_what_is_charged() -> None:
    meter = RecordingMeter()
    generation = make_generation(meter, FakeGenerator("abc", "def", finish_reason=FinishReason.STOP))
    await generation.generate(command())
    async with aclosing(generation.stream(command())) as pieces:
        assert [piece async for piece in pieces]
    assert meter.total(request_metrics.REQUESTS, dialect="totalgpt", outcome="completed") == 2
    assert meter.total(request_metrics.TOKENS, kind="prompt") == 10
    assert meter.total(request_metrics.TOKENS, kind="completion") == 12


async def test_a_stream_that_is_left_counts_what_was_sent_of_it() -> None:
    meter = RecordingMeter()
    generation = make_generation(meter, FakeGenerator("abc", "def"))
    async with aclosing(generation.stream(command())) as pieces:
        await anext(pieces)
        await anext(pieces)
    assert meter.total(request_metrics.REQUESTS, outcome="cancelled") == 1
    assert meter.total(request_metrics.TOKENS, kind="completion") == 3


async def test_what_is_not_let_in_is_counted_with_its_reason_and_as_refused() -> None:
    meter = RecordingMeter()
    window = WindowConfig(name="minute", quota=1, period_s=60)
    limits = LimitsConfig(totalgpt=DialectLimits(windows=(window,)))
    generation = make_generation(meter, FakeGenerator(), limits)
    await generation.generate(command())
    with pytest.raises(RateLimited):
        await generation.generate(command())
    assert meter.total(admission.REFUSALS, dialect="totalgpt", reason="window") == 1
    assert meter.total(request_metrics.REQUESTS, outcome="refused") == 1


async def test_a_failed_answer_is_failed_and_charges_nothing() -> None:
    meter = RecordingMeter()
    generation = make_generation(meter, FakeGenerator(error=GenerationFailed("no")))
    with pytest.raises(GenerationFailed):
        await generation.generate(command())
    assert meter.total(request_metrics.REQUESTS, outcome="failed") == 1
    assert meter.total(request_metrics.TOKENS) == 0


async def test_reservations_of_the_process_are_open_until_they_are_settled() -> None:
    meter, clock, store = RecordingMeter(), Clock(), FakeAdmissionStore()
    gate = make_admission(store, meter=meter, monotonic=clock)
    reservation = await gate.admit(make_caller(), "base", request_metrics.Counts(1, 1))
    clock.time += 7
    await gate.measure()
    assert (meter.last(admission.OPEN), meter.last(admission.OLDEST)) == (1, 7.0)
    store.error = Overloaded("the database does not answer")
    with pytest.raises(Overloaded):
        async with reservation:
            pass
    await asyncio.sleep(0)
    await gate.measure()
    assert (meter.last(admission.OPEN), meter.last(admission.OLDEST)) == (0, 0.0)
    assert meter.last(admission.UNSETTLED) == 1
