"""Requests for adapters at the generator node: real adapters, published as a training publishes them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import pytest
import pytest_asyncio

from deployments.checkpoints.opening import open_artifacts
from deployments.config import AdapterCacheConfig, CheckpointConfig, EngineConfig, ModelConfig
from deployments.errors import CorruptObject, EngineDead, InvalidAdapter
from deployments.generator import GeneratorNode
from deployments.types import AdapterRef, GenerateRequest, SamplingParams
from tests.factories import make_tiny_model
from tests.unit.engine.adapters import adapter_tensors, config_of, make_adapter, write_adapter

pytestmark = pytest.mark.asyncio(loop_scope="module")

LINEARS = {f"model.layers.{layer}.self_attn.{name}_proj": (64, 64) for layer in range(2) for name in ("q", "o")}
PROMPT = tuple(range(40, 75))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def publish(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., AdapterRef]:
    store = open_artifacts(CheckpointConfig(), home)

    def publish(seed: int, *, size: int = 64, rank: int = 4) -> AdapterRef:
        linears = dict.fromkeys(LINEARS, (size, size))
        adapter = make_adapter(linears, seed=seed, size=3.0, rank=rank)
        directory = tmp_path_factory.mktemp("adapter")
        write_adapter(directory, adapter_tensors(adapter), config_of(adapter))
        published = store.publish({path.name: path for path in directory.iterdir()}, {"kind": "adapter"})
        return AdapterRef(f"ft_model_{seed}", published.digest)

    return publish


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def node(home: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GeneratorNode]:
    directory = make_tiny_model(tmp_path_factory.mktemp("tiny"), dtype="float64")
    engine = EngineConfig(dtype="float64", block_size=4, kv_cache_bytes=1200 * 1024)
    # Room for two of these adapters.
    adapters = AdapterCacheConfig(device_bytes=2 * 4 * 2 * 4 * 64 * 8 + 100)
    node = GeneratorNode(
        ModelConfig(id="tiny", source=str(directory), context_length=256, engine=engine), home, adapters=adapters
    )
    await node.start()
    yield node
    await node.stop()


def request(adapter: AdapterRef | None) -> GenerateRequest:
    return GenerateRequest("r", "tiny", PROMPT, SamplingParams(max_tokens=10, min_tokens=10, seed=5), adapter=adapter)


async def text_of(node: GeneratorNode, adapter: AdapterRef | None) -> tuple[int, ...]:
    return (await node.generate(request(adapter))).sequences[0].token_ids


async def test_adapters_and_the_model_answer_each_in_its_own_way_alone_and_together(
    node: GeneratorNode, publish: Callable[..., AdapterRef]
) -> None:
    wanted: list[AdapterRef | None] = [None, publish(1), publish(2)]
    alone = [await text_of(node, adapter) for adapter in wanted]
    assert len(set(alone)) == 3
    together = await asyncio.gather(*(text_of(node, adapter) for adapter in wanted * 2))
    assert together == alone * 2
    assert node.stats().num_adapters == 2


async def test_more_adapters_than_there_is_room_for_take_turns(
    node: GeneratorNode, publish: Callable[..., AdapterRef]
) -> None:
    adapters = [publish(seed) for seed in range(10, 15)]
    first = [await text_of(node, adapter) for adapter in adapters]
    assert await asyncio.gather(*(text_of(node, adapter) for adapter in adapters)) == first
    assert node.stats().num_adapters == 2


async def test_an_adapter_that_does_not_fit_fails_its_own_requests_only(
    node: GeneratorNode, publish: Callable[..., AdapterRef]
) -> None:
    good, bad = publish(20), publish(21, size=32)
    answers = await asyncio.gather(*(text_of(node, ref) for ref in (good, bad, None)), return_exceptions=True)
    assert isinstance(answers[1], InvalidAdapter)
    assert answers[0] == await text_of(node, good)
    assert answers[2] == await text_of(node, None)


async def test_an_adapter_that_is_gone_is_told_so(node: GeneratorNode) -> None:
    with pytest.raises(CorruptObject):
        await text_of(node, AdapterRef("ft_model_gone", "0" * 64))


async def test_a_cancelled_stream_lets_go_of_its_adapter(
    node: GeneratorNode, publish: Callable[..., AdapterRef]
) -> None:
    adapters = [publish(seed) for seed in (30, 31, 32)]
    held = node.stream(request(adapters[0]))
    await anext(held)
    await held.aclose()
    for adapter in adapters[1:]:
        await text_of(node, adapter)
    assert node.stats().num_adapters == 2


async def test_prefixes_are_found_for_the_same_adapter_only(
    node: GeneratorNode, publish: Callable[..., AdapterRef]
) -> None:
    first, second = publish(40), publish(41)
    cached = []
    for adapter in (first, second, first, second):
        cached.append((await node.generate(request(adapter))).usage.cached_tokens)
    assert cached[:2] == [0, 0]
    assert min(cached[2:]) > 0


async def test_adapters_in_use_stay_while_others_take_turns_in_the_room_that_is_left(
    node: GeneratorNode, publish: Callable[..., AdapterRef]
) -> None:
    held, *others = (publish(seed) for seed in range(50, 54))
    whole = await text_of(node, held)
    async with aclosing(node.stream(request(held))) as stream:
        token_ids = list((await anext(stream)).token_ids)
        assert len({await text_of(node, adapter) for adapter in others}) == len(others)
        async for chunk in stream:
            token_ids += chunk.token_ids
    assert tuple(token_ids) == whole


async def test_an_adapter_above_the_whole_budget_fails_its_own_requests_only(
    node: GeneratorNode, publish: Callable[..., AdapterRef]
) -> None:
    good, large = publish(60), publish(61, rank=16)
    expected = await text_of(node, good)
    answers = await asyncio.gather(*(text_of(node, ref) for ref in (large, good, large)), return_exceptions=True)
    assert [type(answer) for answer in (answers[0], answers[2])] == [InvalidAdapter] * 2
    assert answers[1] == expected


async def test_a_damaged_adapter_is_told_so_until_the_store_has_it_whole(
    node: GeneratorNode, publish: Callable[..., AdapterRef], home: Path
) -> None:
    adapter = publish(70)
    blobs = sorted((home / "objects" / "blobs").rglob("*"), key=lambda path: path.stat().st_mtime)
    [blob] = [path for path in blobs if path.is_file() and b"lora_A" in path.read_bytes()][-1:]
    whole = blob.read_bytes()
    blob.chmod(0o600)
    blob.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    for _ in range(2):
        with pytest.raises(CorruptObject):
            await text_of(node, adapter)
    blob.write_bytes(whole)
    await text_of(node, adapter)


async def test_stopping_ends_requests_that_wait_for_their_adapter(
    home: Path, publish: Callable[..., AdapterRef], tmp_path: Path
) -> None:
    directory = make_tiny_model(tmp_path, dtype="float64")
    engine = EngineConfig(dtype="float64", block_size=4, kv_cache_bytes=1200 * 1024)
    node = GeneratorNode(ModelConfig(id="tiny", source=str(directory), context_length=256, engine=engine), home)
    await node.start()
    waiting = asyncio.create_task(text_of(node, publish(80)))
    await asyncio.sleep(0)
    await node.stop()
    with pytest.raises(EngineDead):
        await waiting
