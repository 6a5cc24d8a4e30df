"""The engine's thread and queues, with a fake model: cancellation, overload, failures, resuming."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from deployments.config import EngineConfig
from deployments.engine.protocol import Generation
from deployments.engine.torch_engine import TorchEngine
from deployments.errors import (
    ContextLengthExceeded,
    EngineDead,
    EngineStuck,
    GenerationFailed,
    InvalidParameter,
    Overloaded,
)
from deployments.types import FinishReason, GenerateRequest, SamplingParams
from tests.unit.engine.gated_runner import GatedRunner
from tests.unit.engine.paged_fake import VOCAB_SIZE, next_token


@pytest.fixture
async def make_engine() -> AsyncIterator[Callable[..., object]]:
    started: list[tuple[TorchEngine, GatedRunner]] = []

    async def make(
        *, context_length: int = 64, clock: Callable[[], float] = time.monotonic, **settings: float
    ) -> tuple[TorchEngine, GatedRunner]:
        config = EngineConfig(block_size=4, **settings)
        runner = GatedRunner(64, 4)
        engine = TorchEngine(
            Path("unused"),
            config,
            context_length=context_length,
            eos_token_ids=frozenset(),
            load=lambda _path, _config: runner,
            clock=clock,
        )
        await engine.start()
        started.append((engine, runner))
        return engine, runner

    yield make
    for engine, runner in started:
        runner.let()
        await engine.stop()


def make_request(prompt: list[int], *, max_tokens: int = 5, **fields: object) -> GenerateRequest:
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    return GenerateRequest(
        **{"request_id": "r", "model": "m", "prompt_token_ids": prompt, "sampling": sampling, **fields}
    )


def expected_tokens(prompt: list[int], num_tokens: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(next_token(tokens, VOCAB_SIZE))
    return tokens[len(prompt) :]


async def collect(generation: Generation) -> dict[int, list[int]]:
    tokens: dict[int, list[int]] = {}
    async for deltas in generation:
        for delta in deltas:
            tokens.setdefault(delta.index, []).extend(delta.token_ids)
    return tokens


async def idle(engine: TorchEngine) -> None:
    """Waits until the engine holds nothing."""
    async with asyncio.timeout(10):
        while (stats := engine.stats()).num_running + stats.num_waiting or stats.num_free_blocks < stats.num_blocks:
            await asyncio.sleep(0)


async def test_answers_many_requests_at_once(make_engine) -> None:
    engine, runner = await make_engine()
    prompts = [[index, 1, 2] for index in range(20)]
    generations = [engine.submit(make_request(prompt)) for prompt in prompts]
    runner.let()
    answers = await asyncio.gather(*map(collect, generations))
    assert answers == [{0: expected_tokens(prompt, 5)} for prompt in prompts]
    assert max(len(batch.scheduled) for batch in runner.batches) > 1


async def test_several_steps_come_as_one_item_to_a_slow_reader(make_engine) -> None:
    engine, runner = await make_engine()
    generation = engine.submit(make_request([1], max_tokens=6))
    items = aiter(generation)
    runner.let(1)
    assert [delta.token_ids for delta in await anext(items)] == [tuple(expected_tokens([1], 1))]
    runner.let()
    async with asyncio.timeout(10):
        while engine.stats().num_running:
            await asyncio.sleep(0)
    rest = [delta async for deltas in items for delta in deltas]
    assert [token_id for delta in rest for token_id in delta.token_ids] == expected_tokens([1], 6)[1:]
    assert rest[-1].finish_reason is FinishReason.LENGTH


async def test_close_frees_everything_within_one_step(make_engine) -> None:
    engine, runner = await make_engine()
    generation = engine.submit(make_request([1, 2, 3], max_tokens=50, num_sequences=3))
    runner.let(2)
    await anext(aiter(generation))
    generation.close()
    runner.let(1)
    await idle(engine)
    assert await collect(generation) == {}


async def test_one_stopped_sequence_does_not_end_the_others(make_engine) -> None:
    engine, runner = await make_engine()
    generation = engine.submit(make_request([1], max_tokens=4, num_sequences=2))
    generation.stop_sequence(0)
    runner.let()
    assert await collect(generation) == {1: expected_tokens([1], 4)}
    await idle(engine)


async def test_resumed_sequence_goes_on_where_it_was(make_engine) -> None:
    engine, runner = await make_engine()
    runner.let()
    whole = expected_tokens([7], 9)
    resumed = make_request(
        [7], max_tokens=9, num_sequences=3, generated=(whole[:4], whole, ()), complete=frozenset({1})
    )
    assert await collect(engine.submit(resumed)) == {0: whole[4:], 2: whole}


async def test_full_queue_is_an_overload(make_engine) -> None:
    engine, runner = await make_engine(max_num_seqs=1, max_queued_sequences=2)
    accepted = [engine.submit(make_request([1]))]
    runner.let(1)
    await anext(aiter(accepted[0]))
    accepted += [engine.submit(make_request([2])), engine.submit(make_request([3]))]
    with pytest.raises(Overloaded) as refused:
        engine.submit(make_request([4]))
    assert refused.value.retry_after_s >= 1
    runner.let()
    assert [len((await collect(generation))[0]) for generation in accepted] == [4, 5, 5]


async def test_failed_step_reaches_its_caller_and_the_next_request_succeeds(make_engine) -> None:
    engine, runner = await make_engine()
    runner.fail_next = True
    runner.let()
    with pytest.raises(GenerationFailed):
        await collect(engine.submit(make_request([1])))
    assert await collect(engine.submit(make_request([1]))) == {0: expected_tokens([1], 5)}
    await engine.check_health()


async def test_requests_that_the_model_cannot_compute_do_not_end_the_engine(make_engine) -> None:
    engine, runner = await make_engine()
    runner.fail_for = 49
    runner.let()
    for _ in range(10):
        with pytest.raises(GenerationFailed):
            await collect(engine.submit(make_request([1, 49])))
    await engine.check_health()
    assert await collect(engine.submit(make_request([1], max_tokens=3))) == {0: expected_tokens([1], 3)}


async def test_model_that_computes_nothing_any_more_ends_the_engine(make_engine) -> None:
    engine, runner = await make_engine(max_num_seqs=1)
    computed, waiting = engine.submit(make_request([1])), engine.submit(make_request([2]))
    runner.error = RuntimeError("device-side assert triggered")
    runner.let()
    with pytest.raises(EngineDead):
        await collect(waiting)
    # It may be what has broken the device, so it must not be told that another engine could compute it.
    with pytest.raises(GenerationFailed):
        await collect(computed)
    with pytest.raises(EngineDead):
        await engine.check_health()
    with pytest.raises(EngineDead):
        engine.submit(make_request([1]))


async def test_dead_step_thread_is_told_to_everybody(make_engine) -> None:
    engine, runner = await make_engine()
    generation = engine.submit(make_request([1]))
    runner.error = SystemExit("the thread is gone")
    runner.let(1)
    with pytest.raises(EngineDead):
        await collect(generation)
    with pytest.raises(EngineDead):
        await engine.check_health()
    with pytest.raises(EngineDead):
        engine.submit(make_request([1]))


async def test_step_that_does_not_end_is_told_to_who_asks_after_the_engine_s_health(make_engine) -> None:
    now = 1000.0
    engine, runner = await make_engine(clock=lambda: now, step_timeout_s=60)
    generation = engine.submit(make_request([1], max_tokens=2))
    assert await asyncio.to_thread(runner.is_asked.wait, 30)
    now += 60
    await engine.check_health()
    now += 1
    with pytest.raises(EngineStuck, match="more than 60 s"):
        await engine.check_health()
    runner.let()
    assert await collect(generation) == {0: expected_tokens([1], 2)}
    now += 1000
    await healthy(engine)


async def healthy(engine: TorchEngine) -> None:
    """The step thread may not yet have noted that it has done all."""
    while True:
        with contextlib.suppress(EngineStuck):
            return await engine.check_health()
        await asyncio.sleep(0.01)


async def test_stop_ends_what_runs(make_engine) -> None:
    engine, runner = await make_engine()
    generation = engine.submit(make_request([1], max_tokens=60))
    runner.let(3)
    await anext(aiter(generation))
    stopping = asyncio.create_task(engine.stop())
    await asyncio.sleep(0)
    runner.let()
    await stopping
    with pytest.raises(EngineDead):
        await collect(generation)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": [1] * 8},
        {"prompt": [1] * 5, "generated": ([2] * 3,)},
        {"prompt": [1] * 5, "generated": ([2], [2] * 3), "num_sequences": 2},
    ],
)
async def test_refuses_at_once_what_can_never_fit(make_engine, fields) -> None:
    engine, runner = await make_engine(context_length=8)
    with pytest.raises(ContextLengthExceeded):
        engine.submit(make_request(**fields))
    runner.let()
    assert await collect(engine.submit(make_request([1] * 7))) == {0: expected_tokens([1] * 7, 1)}


async def test_a_complete_sequence_needs_no_room(make_engine) -> None:
    engine, runner = await make_engine(context_length=8)
    runner.let()
    resumed = make_request([1] * 5, num_sequences=2, generated=([2] * 3, [2]), complete=frozenset({0}))
    assert list(await collect(engine.submit(resumed))) == [1]


async def test_refuses_a_prompt_without_tokens(make_engine) -> None:
    engine, _ = await make_engine()
    with pytest.raises(InvalidParameter) as error:
        engine.submit(make_request([]))
    assert error.value.param == "prompt"


@pytest.mark.parametrize(
    ("field", "sampling"),
    [
        ("stop_token_ids", {"stop_token_ids": (50,)}),
        ("logit_bias", {"logit_bias": ((-1, 1.0),)}),
        ("allowed_token_ids", {"allowed_token_ids": (3, 99)}),
    ],
)
async def test_token_ids_outside_the_vocabulary_name_their_field(make_engine, field, sampling) -> None:
    engine, _ = await make_engine()
    with pytest.raises(InvalidParameter) as error:
        engine.submit(make_request([1], sampling=SamplingParams(**sampling)))
    assert error.value.param == field


async def test_cache_smaller_than_the_context_is_refused_at_start(make_engine) -> None:
    with pytest.raises(ValueError, match="raise kv_cache_bytes"):
        await make_engine(context_length=1000)


async def test_two_hundred_cancelled_requests_leave_nothing(make_engine) -> None:
    engine, runner = await make_engine(max_num_seqs=8, max_queued_sequences=1000)
    generations = [engine.submit(make_request([index % 50], max_tokens=40, num_sequences=2)) for index in range(200)]
    runner.let(5)
    for generation in reversed(generations):
        generation.close()
    runner.let()
    await idle(engine)
    assert await collect(engine.submit(make_request([9]))) == {0: expected_tokens([9], 5)}
