"""Admission and settlement around text generation: what is admitted, what is billed, whatever happens in between."""

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from deployments.config import ModelConfig
from deployments.errors import GenerationFailed, ModelNotFound, OutOfCredits, Overloaded, RateLimited
from deployments.graph import Graph
from deployments.types import SamplingParams, TextPrompt
from serve_app.config import LimitsConfig
from serve_app.ledger.book import Purse
from serve_app.ledger.entries import Counts, Outcome
from serve_app.use_cases.admission import Admission
from serve_app.use_cases.callers import Caller, Dialect, KeyLimits, Principal, Window
from serve_app.use_cases.generate import GenerateCommand, TextGeneration
from tests.fakes import FakeAdmissionStore, FakeGenerator, FakeTokenizer, make_admission, make_models

PRINCIPAL = Principal("acme", "key")
MOST = Counts(10, 5, 0)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make_caller(
    request_id: str = "r1", *, dialect: Dialect = Dialect.TOTALGPT, principal: Principal = PRINCIPAL
) -> Caller:
    return Caller(request_id, dialect, principal)


def make_generation(
    *generator_chunks: str, store: FakeAdmissionStore | None = None, **fields: Any
) -> tuple[TextGeneration, FakeAdmissionStore, FakeGenerator]:
    store = store or FakeAdmissionStore()
    generator = FakeGenerator(*generator_chunks, **fields)
    models = make_models(ModelConfig(id="base", source="nowhere"), ModelConfig(id="other", source="nowhere"))
    graph = Graph(tokenizer=FakeTokenizer(), generators={"base": generator, "other": generator})
    return TextGeneration(graph, models, make_admission(store)), store, generator


def make_command(*prompts: str, caller: Caller | None = None, **fields: Any) -> GenerateCommand:
    values: dict[str, Any] = {"model": "base", "sampling": SamplingParams(), "max_tokens": 20, **fields}
    return GenerateCommand(
        caller=caller or make_caller(), prompts=tuple(map(TextPrompt, prompts or ("hello",))), **values
    )


async def test_whole_answer_is_billed_with_every_sequence() -> None:
    generation, store, _ = make_generation("abc", "def")
    await generation.generate(make_command("hello", "hi", n=1, best_of=2))
    settlement = store.settlement
    assert (settlement.counts, settlement.outcome) == (Counts(7, 24, 12), Outcome.COMPLETED)
    assert settlement.cost == (7 + 4 * 24) * 1_000_000
    assert settlement.line.held == (7 + 4 * 2 * 2 * 20) * 1_000_000
    assert store.book.accounts["acme"] == Purse(None, spent=settlement.cost)


async def test_stream_bills_what_the_consumer_came_back_from() -> None:
    generation, store, _ = make_generation("abc", "def", "ghi")
    async with aclosing(generation.stream(make_command())) as chunks:
        async for item in chunks:
            if item.chunk.text == "def":
                break
    assert (store.settlement.counts, store.settlement.outcome) == (Counts(5, 3, 3), Outcome.CANCELLED)


async def test_finished_stream_is_settled_before_it_ends() -> None:
    generation, store, _ = make_generation("abc", "def")
    async for _ in generation.stream(make_command()):
        assert store.settled == []
    assert (store.settlement.counts, store.settlement.outcome) == (Counts(5, 6, 6), Outcome.COMPLETED)


async def test_stream_that_fails_bills_what_was_delivered() -> None:
    generation, store, _ = make_generation("abc", error=GenerationFailed("broken"))
    with pytest.raises(GenerationFailed):
        async for _ in generation.stream(make_command()):
            pass
    assert (store.settlement.counts, store.settlement.outcome) == (Counts(5, 3, 3), Outcome.FAILED)


async def test_whole_answer_that_fails_or_is_not_awaited_costs_nothing() -> None:
    generation, store, _ = make_generation("abc", error=GenerationFailed("broken"))
    with pytest.raises(GenerationFailed):
        await generation.generate(make_command())
    assert (store.settlement.cost, store.settlement.outcome) == (0, Outcome.FAILED)

    generation, store, generator = make_generation("abc", hang=True)
    task = asyncio.create_task(generation.generate(make_command()))
    await generator.started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (store.settlement.cost, store.settlement.outcome) == (0, Outcome.CANCELLED)
    assert store.book.accounts["acme"].reserved == 0


async def test_whole_answer_that_cannot_be_rendered_costs_nothing() -> None:
    generation, store, _ = make_generation("abc")
    with pytest.raises(GenerationFailed):
        async with generation.answering(make_command()):
            assert store.settled == []
            raise GenerationFailed("the tokenizer is lost")
    assert (store.settlement.cost, store.settlement.outcome) == (0, Outcome.FAILED)


async def test_settlement_goes_on_when_the_stream_is_cancelled_twice() -> None:
    generation, store, generator = make_generation("abc", hang=True)

    async def read() -> None:
        async for _ in generation.stream(make_command()):
            pass

    task = asyncio.create_task(read())
    await generator.started.wait()
    for _ in range(4):
        await asyncio.sleep(0)
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)
    assert store.settlement.outcome is Outcome.CANCELLED
    assert store.book.lines == set()


async def test_inferkit_bills_code_points_and_a_minimum() -> None:
    for text, billed in (("é" * 5, 100), ("é" * 150, 150)):
        generation, store, _ = make_generation(text)
        caller = make_caller(dialect=Dialect.INFERKIT)
        sampling = SamplingParams(max_characters=200)
        await generation.generate(make_command(caller=caller, sampling=sampling, max_tokens=800))
        assert store.settlement.cost == billed * 1_000_000
        assert store.settlement.line.held == 200_000_000


async def test_dropped_output_bills_the_prompt() -> None:
    generation, store, _ = make_generation("abc")
    await generation.generate(make_command(max_tokens=1, drop_output=True))
    assert store.settlement.cost == store.settlement.line.held == 5_000_000


async def test_nothing_is_generated_without_credit_and_the_request_is_counted() -> None:
    generation, store, generator = make_generation("abc")
    store.book.accounts["acme"].limit = 84_999_999
    caller = make_caller(dialect=Dialect.AITEXTGEN)
    with pytest.raises(OutOfCredits):
        await generation.generate(make_command(caller=caller))
    assert caller.limits is not None and [standing.remaining for standing in caller.limits] == [99, 4999]
    assert generator.requests == [] and store.book.lines == set()


async def test_model_that_a_key_may_not_use_does_not_exist_for_it() -> None:
    generation, _, _ = make_generation("abc")
    principal = Principal("acme", "key", models=frozenset({"other"}))
    with pytest.raises(ModelNotFound):
        await generation.generate(make_command(caller=make_caller(principal=principal)))
    await generation.generate(make_command(caller=make_caller(principal=principal), model="other"))


async def test_a_hundred_requests_a_minute_then_a_refusal_that_says_when_to_come_back() -> None:
    clock = Clock()
    admission = make_admission(FakeAdmissionStore(now=clock))
    callers = [make_caller(str(number), dialect=Dialect.AITEXTGEN) for number in range(102)]
    for caller in callers[:100]:
        await admission.admit(caller, "base", MOST)
    clock.now += 20
    with pytest.raises(RateLimited, match="100 requests in 60 seconds") as refused:
        await admission.admit(callers[100], "base", MOST)
    assert refused.value.retry_after_s == 40
    assert callers[100].limits is not None and [standing.remaining for standing in callers[100].limits] == [0, 4900]
    clock.now += 40
    await admission.admit(callers[101], "base", MOST)
    assert callers[101].limits is not None and [standing.remaining for standing in callers[101].limits] == [99, 4899]


async def test_counted_requests_share_the_windows_and_count_once() -> None:
    admission = make_admission()
    caller = make_caller(dialect=Dialect.AITEXTGEN)
    await admission.count(caller)
    await admission.count(caller)
    assert [standing.remaining for standing in caller.limits or ()] == [99, 4999]
    standings = await admission.standings(PRINCIPAL, Dialect.AITEXTGEN)
    assert [standing.remaining for standing in standings] == [99, 4999]


async def test_limits_of_a_key_replace_those_of_its_dialect() -> None:
    limits = KeyLimits((Window("hour", 1, 3600.0),), max_concurrent=1)
    principal = Principal("acme", "key", limits=((Dialect.AITEXTGEN, limits),))
    admission = make_admission()
    first = await admission.admit(make_caller("1", dialect=Dialect.AITEXTGEN, principal=principal), "base", MOST)
    with pytest.raises(RateLimited, match="at once"):
        await admission.admit(make_caller("2", dialect=Dialect.AITEXTGEN, principal=principal), "base", MOST)
    await first.settle(Outcome.COMPLETED)
    with pytest.raises(RateLimited, match="hour"):
        await admission.admit(make_caller("3", dialect=Dialect.AITEXTGEN, principal=principal), "base", MOST)


async def test_token_windows_hold_the_most_and_get_back_the_rest() -> None:
    window = {"name": "minute", "quota": 20, "period_s": 60, "counts": "tokens"}
    admission = make_admission(limits=LimitsConfig.model_validate({"totalgpt": {"windows": [window]}}))
    reservation = await admission.admit(make_caller("1"), "base", MOST)
    with pytest.raises(RateLimited, match="20 tokens in 60 seconds"):
        await admission.admit(make_caller("2"), "base", MOST)
    await reservation.settle(Outcome.COMPLETED, about_to_send=Counts(2, 1))
    await admission.admit(make_caller("3"), "base", MOST)
    with pytest.raises(RateLimited, match="21 tokens, above"):
        await admission.admit(make_caller("4"), "base", Counts(21))


async def test_whoever_leaves_while_being_admitted_leaves_nothing_open() -> None:
    store = FakeAdmissionStore()
    admission = make_admission(store)
    task = asyncio.create_task(admission.admit(make_caller(), "base", MOST))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await admission.drain()
    assert store.book.lines == set()
    assert (store.settlement.cost, store.settlement.outcome) == (0, Outcome.CANCELLED)


async def test_whoever_leaves_while_being_admitted_gets_the_held_tokens_back() -> None:
    window = {"name": "minute", "quota": 20, "period_s": 60, "counts": "tokens"}
    limits = LimitsConfig.model_validate({"totalgpt": {"windows": [window]}})
    store = FakeAdmissionStore()
    admission = make_admission(store, limits=limits)
    task = asyncio.create_task(admission.admit(make_caller("1"), "base", MOST))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    await admission.drain()
    assert store.settlement.line.id == "1"
    caller = make_caller("2")
    await admission.admit(caller, "base", MOST)
    assert caller.limits is not None and [standing.remaining for standing in caller.limits] == [5]


@pytest.mark.parametrize("outcome", list(Outcome))
async def test_complete_answer_whose_line_others_have_closed_is_not_given(outcome: Outcome) -> None:
    store = FakeAdmissionStore()
    reservation = await make_admission(store).admit(make_caller(), "base", MOST)
    store.book.lines.clear()
    if outcome is Outcome.COMPLETED:
        with pytest.raises(Overloaded, match="send it again"):
            await reservation.settle(outcome, about_to_send=Counts(1, 1))
    await reservation.settle(outcome)
    assert store.settled == []


async def test_stream_whose_line_others_have_closed_ends_with_an_error() -> None:
    generation, store, _ = make_generation("abc", "def")
    texts = []
    with pytest.raises(Overloaded, match="send it again"):
        async for item in generation.stream(make_command()):
            texts.append(item.chunk.text)
            store.book.lines.clear()
    assert texts[:2] == ["abc", "def"]


async def test_answer_that_cannot_be_settled_is_not_given_and_not_billed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.use_cases.admission._SETTLE_RETRY_S", 0)
    store = FakeAdmissionStore()
    admission = make_admission(store)
    reservation = await admission.admit(make_caller(), "base", MOST)
    reservation.delivered(Counts(1, 0))
    store.error = Overloaded("the database does not answer")
    with pytest.raises(Overloaded):
        await reservation.settle(Outcome.COMPLETED, about_to_send=Counts(9, 5))
    store.error = None
    await admission.drain()
    assert (store.settlement.counts, store.settlement.outcome) == (Counts(1, 0), Outcome.FAILED)


async def test_lost_answer_of_the_store_leaves_no_line_behind() -> None:
    class Forgetful(FakeAdmissionStore):
        async def open(self, opening: Any) -> Any:
            await super().open(opening)
            raise Overloaded("the connection broke")

    store = Forgetful()
    admission = make_admission(store)
    with pytest.raises(Overloaded):
        await admission.admit(make_caller(), "base", MOST)
    await admission.drain()
    assert store.book.lines == set() and store.settlement.cost == 0


async def test_progress_is_recorded_of_long_requests_that_went_on() -> None:
    clock = Clock()
    store = FakeAdmissionStore()
    rules = make_admission()._rules
    admission = Admission(store, rules, owner="me", monotonic=clock)
    long, short = [await admission.admit(make_caller(name), "base", MOST) for name in ("long", "short")]
    long.delivered(Counts(10, 1))
    await admission.record_progress(older_than_s=0.25)
    clock.now += 0.25
    await admission.record_progress(older_than_s=0.25)
    await admission.record_progress(older_than_s=0.25)
    long.delivered(Counts(0, 2))
    await admission.record_progress(older_than_s=0.25)
    assert [(part.id, part.counts) for part in store.recorded] == [("long", Counts(10, 1)), ("long", Counts(10, 3))]
    await long.settle(Outcome.COMPLETED)
    await short.settle(Outcome.COMPLETED)
    long.delivered(Counts(0, 2))
    await admission.record_progress(older_than_s=0.25)
    assert len(store.recorded) == 2
