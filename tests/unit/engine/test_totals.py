"""What an engine counts of its work, and what it says of a request's times; with a clock that the test moves."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from deployments.config import EngineConfig
from deployments.engine.torch_engine import TorchEngine
from tests.unit.engine.adapters import make_adapter
from tests.unit.engine.test_torch_engine import GatedRunner, make_request

FIRST = make_adapter({"linear": (4, 4)}, digest="first")


class Clock:
    """Every look at it takes a second."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        self.time += 1
        return self.time


async def start(runner: GatedRunner, **fields: int) -> TorchEngine:
    engine = TorchEngine(
        Path("unused"),
        EngineConfig(block_size=4, speculation=None, stream_interval_s=0, **fields),
        context_length=64,
        eos_token_ids=frozenset(),
        load=lambda _path, _config: runner,
        clock=Clock(),
    )
    await engine.start()
    return engine


@pytest_asyncio.fixture
async def running() -> AsyncIterator[tuple[TorchEngine, GatedRunner]]:
    runner = GatedRunner(16, 4)
    engine = await start(runner)
    yield engine, runner
    runner.let()
    await engine.stop()


async def test_steps_sequences_tokens_and_what_the_cache_had(running: tuple[TorchEngine, GatedRunner]) -> None:
    engine, runner = running
    runner.let()
    for _ in range(2):
        async for _ in engine.submit(make_request(list(range(9)), max_tokens=3)):
            pass
    totals = engine.stats().totals
    assert (totals.steps, totals.step_sequences) == (6, 6)
    assert (totals.prompt_tokens, totals.cached_tokens) == (18, 8)
    assert totals.step_tokens == 18 - 8 + 2 * 2  # the last token of each is drawn, not computed
    assert totals.step_s >= totals.steps  # the clock's second for each


async def test_a_request_that_waits_is_queued_and_its_tokens_have_their_times(
    running: tuple[TorchEngine, GatedRunner],
) -> None:
    engine, runner = running
    generation = engine.submit(make_request([1, 2, 3], max_tokens=3))
    assert generation.timing is None
    runner.let()
    async for _ in generation:
        pass
    timing = generation.timing
    assert timing is not None
    assert 0 < timing.queue_s < timing.first_token_s < timing.last_token_s


async def test_sequences_that_give_their_cache_back_are_counted() -> None:
    runner = GatedRunner(17, 4)
    engine = await start(runner, enable_prefix_reuse=False)
    try:
        generations = [engine.submit(make_request([n, n, n], max_tokens=50)) for n in (1, 2, 3)]
        runner.let()
        for generation in generations:
            async for _ in generation:
                pass
        assert engine.stats().totals.preemptions > 0
    finally:
        await engine.stop()


async def test_an_adapter_is_loaded_once(running: tuple[TorchEngine, GatedRunner]) -> None:
    engine, _ = running
    for _ in range(2):
        await engine.load_adapter(FIRST)
    totals = engine.stats().totals
    assert (totals.adapter_loads, totals.adapter_load_s > 0) == (1, True)
