"""What the generator node measures, on a tiny real model."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from deployments import generator_metrics as metrics
from deployments.config import EngineConfig, ModelConfig
from deployments.engine.torch_engine import TorchEngine
from deployments.generator import GeneratorNode
from deployments.meter import Meter
from deployments.model_files import ModelFiles
from deployments.start_phases import StartPhases
from deployments.types import GenerateRequest, SamplingParams
from tests.factories import make_tiny_model
from tests.recording_meter import RecordingMeter
from tests.unit.engine.gated_runner import GatedRunner

pytestmark = pytest.mark.asyncio(loop_scope="module")

METER = RecordingMeter()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GeneratorNode]:
    directory: Path = make_tiny_model(tmp_path_factory.mktemp("tiny"))
    engine = EngineConfig(dtype="float32", block_size=4, kv_cache_bytes=1024 * 1024, stream_interval_s=0)
    node = GeneratorNode(ModelConfig(id="tiny", source=str(directory), engine=engine), meter=METER)
    await node.start()
    yield node
    await node.stop()


@asynccontextmanager
async def gated_node(directory: Path, meter: Meter | None = None) -> AsyncIterator[tuple[GeneratorNode, GatedRunner]]:
    """A started node whose engine computes a step only when the test lets it, one token for each."""
    runner = GatedRunner(64, 4)
    config = EngineConfig(block_size=4, stream_interval_s=0, speculation=None)
    model = ModelConfig(id="tiny", source=str(make_tiny_model(directory)), engine=config)

    def make_engine(model: ModelConfig, files: ModelFiles, _home: Path, _phases: StartPhases) -> TorchEngine:
        return TorchEngine(
            files.directory, model.engine, context_length=64, eos_token_ids=frozenset(), load=lambda *_: runner
        )

    node = GeneratorNode(model, make_engine=make_engine, meter=meter)
    await node.start()
    try:
        yield node, runner
    finally:
        runner.let()
        await node.stop()


def request(prompt: tuple[int, ...], **fields: int) -> GenerateRequest:
    return GenerateRequest("r", "tiny", prompt, SamplingParams(max_tokens=8, ignore_eos=True, **fields))


async def test_the_start_tells_its_phases(node: GeneratorNode) -> None:
    assert {"source", "tokenizer", "imports", "weights"} <= node.phases.seconds.keys()
    assert all(seconds >= 0 for seconds in node.phases.seconds.values())


async def test_the_first_and_the_last_chunk_say_what_was_the_engine_s_time(tmp_path: Path) -> None:
    async with gated_node(tmp_path) as (node, runner), aclosing(node.stream(request((40, 41, 42)))) as stream:
        chunks = []
        # A chunk holds whatever has come by the time that it is taken; so no token is computed before it is awaited.
        for _ in range(8):
            runner.let(1)
            chunks.append(await anext(stream))
        assert await anext(stream, None) is None
    assert [chunk.timing is not None for chunk in chunks] == [True, *[False] * 6, True]
    first, last = chunks[0].timing, chunks[-1].timing
    assert first is not None
    assert last is not None
    assert 0 <= first.queue_s <= first.first_token_s <= last.last_token_s
    assert (first.queue_s, first.first_token_s) == (last.queue_s, last.first_token_s)


async def test_a_whole_answer_has_its_timing_and_every_request_is_measured_once(node: GeneratorNode) -> None:
    before = len(METER.observed(metrics.QUEUE))
    result = await node.generate(request((50, 51, 52)))
    assert result.timing is not None
    assert METER.observed(metrics.FIRST_TOKEN)[before:] == [result.timing.first_token_s]
    [per_token] = METER.observed(metrics.TOKEN)[before:]
    assert per_token == pytest.approx((result.timing.last_token_s - result.timing.first_token_s) / 7)


async def test_totals_count_steps_sequences_and_what_the_cache_spared(node: GeneratorNode) -> None:
    before = node.stats().totals
    prompt = tuple(range(60, 77))
    await node.generate(request(prompt))
    first = node.stats().totals
    assert first.steps > before.steps
    assert first.step_s > before.step_s
    assert first.step_tokens - before.step_tokens == 17 + 7  # the last token is drawn, not computed
    assert first.prompt_tokens - before.prompt_tokens == 17
    assert first.cached_tokens == before.cached_tokens
    await node.generate(request(prompt))
    assert node.stats().totals.cached_tokens - first.cached_tokens == 16


async def test_a_request_that_is_left_before_its_first_token_is_not_measured(tmp_path: Path) -> None:
    meter = RecordingMeter()
    async with gated_node(tmp_path, meter) as (node, runner):
        task = asyncio.create_task(anext(node.stream(request((40, 41, 42)))))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert meter.observed(metrics.QUEUE) == []
        runner.let()
        await node.generate(request((40, 41, 42)))
        assert len(meter.observed(metrics.QUEUE)) == 1
