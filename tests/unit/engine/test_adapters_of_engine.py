"""Loading and unloading adapters while an engine runs: who may use them, when they go, what their cache is worth."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from deployments.config import EngineConfig
from deployments.engine.protocol import Generation, LoadedAdapter
from deployments.engine.torch_engine import TorchEngine
from deployments.errors import AdapterNotLoaded, EngineDead, InvalidAdapter
from deployments.types import AdapterRef, GenerateRequest
from tests.unit.engine.adapters import make_adapter
from tests.unit.engine.paged_fake import FakeAdapter, next_token, seen_as
from tests.unit.engine.test_torch_engine import VOCAB_SIZE, GatedRunner, make_request

FIRST = make_adapter({"linear": (4, 4)}, digest="first")
SECOND = make_adapter({"linear": (4, 4)}, digest="second")


@pytest_asyncio.fixture
async def running() -> AsyncIterator[tuple[TorchEngine, GatedRunner]]:
    from pathlib import Path

    runner = GatedRunner(64, 4)
    engine = TorchEngine(
        Path("unused"),
        EngineConfig(block_size=4),
        context_length=64,
        eos_token_ids=frozenset(),
        load=lambda _path, _config: runner,
    )
    await engine.start()
    yield engine, runner
    runner.let()
    await engine.stop()


def expected_tokens(prompt: list[int], num_tokens: int, adapter: AdapterRef | None) -> list[int]:
    prepared = None if adapter is None else FakeAdapter(adapter)
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(next_token([seen_as(token_id, prepared) for token_id in tokens], VOCAB_SIZE))
    return tokens[len(prompt) :]


async def tokens_of(generation: Generation) -> list[int]:
    return [token_id async for deltas in generation for delta in deltas for token_id in delta.token_ids]


def request_with(adapter: LoadedAdapter | None, prompt: list[int], **fields: object) -> GenerateRequest:
    return make_request(prompt, adapter=None if adapter is None else adapter.ref, **fields)


async def test_each_request_gets_its_own_adapter(running: tuple[TorchEngine, GatedRunner]) -> None:
    engine, runner = running
    runner.let()
    await engine.load_adapter(FIRST)
    await engine.load_adapter(SECOND)
    # Long enough to fill blocks: a prefix of another adapter must not be found.
    prompt = list(range(20))
    expected = {adapter: expected_tokens(prompt, 5, adapter and adapter.ref) for adapter in (None, FIRST, SECOND)}
    assert len({tuple(tokens) for tokens in expected.values()}) == 3

    for adapter in (None, FIRST, SECOND, FIRST, None):
        assert await tokens_of(engine.submit(request_with(adapter, prompt))) == expected[adapter]
    together = [engine.submit(request_with(adapter, prompt)) for adapter in expected]
    assert [await tokens_of(generation) for generation in together] == list(expected.values())


async def test_prefixes_are_found_for_the_same_adapter_only(running: tuple[TorchEngine, GatedRunner]) -> None:
    engine, runner = running
    runner.let()
    await engine.load_adapter(FIRST)
    await engine.load_adapter(SECOND)
    cached = []
    for adapter in (FIRST, FIRST, SECOND, None):
        generation = engine.submit(request_with(adapter, list(range(20))))
        cached.append(max([delta.num_cached_tokens async for deltas in generation for delta in deltas]))

    assert cached == [0, 16, 0, 0]


async def test_loading_again_finds_the_prefixes_of_the_same_content(running: tuple[TorchEngine, GatedRunner]) -> None:
    engine, runner = running
    runner.let()
    for expected in (0, 16):
        await engine.load_adapter(FIRST)
        generation = engine.submit(request_with(FIRST, list(range(20))))
        assert max([delta.num_cached_tokens async for deltas in generation for delta in deltas]) == expected
        await engine.unload_adapter(FIRST.ref)


async def test_adapter_that_is_not_loaded_is_an_error_of_its_own(running: tuple[TorchEngine, GatedRunner]) -> None:
    engine, _ = running
    with pytest.raises(AdapterNotLoaded) as error:
        engine.submit(request_with(FIRST, [1]))
    assert FIRST.ref.id in error.value.message
    assert error.value.status == 503


async def test_loading_twice_is_loading_once(running: tuple[TorchEngine, GatedRunner]) -> None:
    engine, _ = running
    await asyncio.gather(engine.load_adapter(FIRST), engine.load_adapter(FIRST))
    await engine.load_adapter(FIRST)
    assert (engine.stats().num_adapters, engine.stats().adapter_bytes) == (1, 1000)

    await engine.unload_adapter(FIRST.ref)
    await engine.unload_adapter(FIRST.ref)
    assert (engine.stats().num_adapters, engine.stats().adapter_bytes) == (0, 0)


async def test_bad_adapter_is_refused_and_harms_nobody(running: tuple[TorchEngine, GatedRunner]) -> None:
    engine, runner = running
    going = engine.submit(request_with(None, [1, 2, 3]))
    runner.let(1)
    with pytest.raises(InvalidAdapter):
        await engine.load_adapter(LoadedAdapter(AdapterRef("empty", "empty"), {}))
    runner.let()
    assert await tokens_of(going) == expected_tokens([1, 2, 3], 5, None)
    assert engine.stats().num_adapters == 0


async def test_loading_does_not_wait_for_a_step(running: tuple[TorchEngine, GatedRunner]) -> None:
    engine, runner = running
    going = engine.submit(request_with(None, [1, 2, 3]))
    async with asyncio.timeout(10):
        await engine.load_adapter(FIRST)  # while the step of the other waits for its gate
        joined = engine.submit(request_with(FIRST, [4]))
    runner.let()
    assert await tokens_of(going) == expected_tokens([1, 2, 3], 5, None)
    assert await tokens_of(joined) == expected_tokens([4], 5, FIRST.ref)


async def test_unloading_waits_for_those_that_run_and_refuses_new_ones(
    running: tuple[TorchEngine, GatedRunner],
) -> None:
    engine, runner = running
    await engine.load_adapter(FIRST)
    going = engine.submit(request_with(FIRST, [1, 2, 3], max_tokens=6, num_sequences=2))
    other = engine.submit(request_with(None, [1, 2, 3], max_tokens=40))
    runner.let(2)
    await anext(aiter(going))

    unloading = asyncio.create_task(engine.unload_adapter(FIRST.ref))
    await asyncio.sleep(0)
    with pytest.raises(AdapterNotLoaded):
        engine.submit(request_with(FIRST, [4]))
    assert not unloading.done()

    runner.let(20)
    async with asyncio.timeout(10):
        await unloading
        while engine.stats().num_running != 1:  # the other still runs
            await asyncio.sleep(0)
    runner.let()
    assert await tokens_of(other) == expected_tokens([1, 2, 3], 40, None)


async def test_what_is_unloaded_meanwhile_is_computed_to_its_end(running: tuple[TorchEngine, GatedRunner]) -> None:
    engine, runner = running
    await engine.load_adapter(FIRST)
    going = engine.submit(request_with(FIRST, [1, 2, 3], max_tokens=9))
    unloading = asyncio.create_task(engine.unload_adapter(FIRST.ref))
    await asyncio.sleep(0)
    await engine.load_adapter(FIRST)  # a new load, for new requests
    runner.let()

    assert await tokens_of(going) == expected_tokens([1, 2, 3], 9, FIRST.ref)
    await unloading
    assert await tokens_of(engine.submit(request_with(FIRST, [5]))) == expected_tokens([5], 5, FIRST.ref)


async def test_cancelled_requests_let_go_of_their_adapter(running: tuple[TorchEngine, GatedRunner]) -> None:
    engine, runner = running
    await engine.load_adapter(FIRST)
    going = engine.submit(request_with(FIRST, [1], max_tokens=50))
    runner.let(1)
    await anext(aiter(going))
    going.close()
    runner.let(1)
    async with asyncio.timeout(10):
        await engine.unload_adapter(FIRST.ref)


async def test_cancelled_unloading_is_done_all_the_same(running: tuple[TorchEngine, GatedRunner]) -> None:
    engine, runner = running
    await engine.load_adapter(FIRST)
    going = engine.submit(request_with(FIRST, [1]))
    unloading = asyncio.create_task(engine.unload_adapter(FIRST.ref))
    await asyncio.sleep(0)
    unloading.cancel()
    runner.let()
    assert await tokens_of(going) == expected_tokens([1], 5, FIRST.ref)
    assert engine.stats().num_adapters == 0
    await engine.check_health()


async def test_broken_device_ends_the_engine_though_no_adapter_gets_onto_it(
    running: tuple[TorchEngine, GatedRunner],
) -> None:
    engine, runner = running
    runner.let()
    runner.error = RuntimeError("device-side assert triggered")
    with pytest.raises(RuntimeError, match="device-side"):
        await engine.load_adapter(FIRST)
    with pytest.raises(EngineDead):
        async with asyncio.timeout(10):
            while True:
                await engine.check_health()
                await asyncio.sleep(0)


async def test_adapter_that_cannot_be_prepared_does_not_end_the_engine(
    running: tuple[TorchEngine, GatedRunner],
) -> None:
    engine, runner = running
    runner.let()
    for _ in range(3):
        with pytest.raises(InvalidAdapter):
            await engine.load_adapter(make_adapter({}, digest="empty"))
    assert await tokens_of(engine.submit(request_with(None, [1]))) == expected_tokens([1], 5, None)
    await engine.check_health()


async def test_dead_engine_ends_the_waiting_for_an_unload(running: tuple[TorchEngine, GatedRunner]) -> None:
    engine, runner = running
    await engine.load_adapter(FIRST)
    going = engine.submit(request_with(FIRST, [1]))
    unloading = asyncio.create_task(engine.unload_adapter(FIRST.ref))
    await asyncio.sleep(0)
    runner.error = SystemExit("the thread is gone")
    runner.let(1)
    with pytest.raises(EngineDead):
        await tokens_of(going)
    with pytest.raises(EngineDead):
        await unloading
    with pytest.raises(EngineDead):
        await engine.load_adapter(SECOND)
