"""The generator node on a tiny random model in float64: text, stops, logprobs, seeds and resuming, end to end."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.config import EngineConfig, ModelConfig
from deployments.errors import EngineDead, InvalidParameter
from deployments.generator import GeneratorNode
from deployments.types import FinishReason, GenerateChunk, GenerateRequest, SamplingParams
from tests.factories import IM_END_ID, make_tiny_model

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = (40, 41, 42, 90, 91, 260, 270)
SAMPLING = {"max_tokens": 12, "temperature": 1.0, "seed": 7}


def make_request(prompt: tuple[int, ...] = PROMPT, *, num_sequences: int = 1, **fields: Any) -> GenerateRequest:
    request_fields = {name: fields.pop(name) for name in ("generated", "complete") if name in fields}
    return GenerateRequest(
        request_id="r",
        model="tiny",
        prompt_token_ids=prompt,
        sampling=SamplingParams(**{**SAMPLING, **fields}),
        num_sequences=num_sequences,
        **request_fields,
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), dtype="float64")


StartNode = Callable[..., Any]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def start_node(directory: Path) -> AsyncIterator[StartNode]:
    nodes: list[GeneratorNode] = []

    async def start(**engine: Any) -> GeneratorNode:
        # So little cache that several long sequences preempt each other.
        engine = {"dtype": "float64", "block_size": 4, "kv_cache_bytes": 600 * 1024, **engine}
        model = ModelConfig(id="tiny", source=str(directory), context_length=256, engine=EngineConfig(**engine))
        node = GeneratorNode(model)
        await node.start()
        nodes.append(node)
        return node

    yield start
    for node in nodes:
        await node.stop()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def node(start_node: StartNode) -> GeneratorNode:
    started: GeneratorNode = await start_node()
    return started


async def chunks_of(node: GeneratorNode, request: GenerateRequest) -> list[GenerateChunk]:
    return [chunk async for chunk in node.stream(request)]


async def idle(node: GeneratorNode) -> None:
    """Waits until no sequence runs and no block is held."""
    async with asyncio.timeout(10):
        while (stats := node.stats()).num_running or stats.num_free_blocks < stats.num_blocks:
            await asyncio.sleep(0)


async def test_stream_and_unary_answers_are_the_same(node: GeneratorNode) -> None:
    request = make_request(num_sequences=3, logprobs=2)
    result = await node.generate(request)
    chunks = await chunks_of(node, request)
    for sequence in result.sequences:
        own = [chunk for chunk in chunks if chunk.index == sequence.index]
        assert "".join(chunk.text for chunk in own) == sequence.text
        assert tuple(token for chunk in own for token in chunk.token_ids) == sequence.token_ids
        assert tuple(entry for chunk in own for entry in chunk.logprobs or ()) == sequence.logprobs
        assert [chunk.finish_reason for chunk in own][:-1] == [None] * (len(own) - 1)
        assert own[-1].finish_reason is sequence.finish_reason
    assert [chunk.usage for chunk in chunks][:-1] == [None] * (len(chunks) - 1)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == result.usage.completion_tokens == 36
    assert result.usage.prompt_tokens == len(PROMPT)


async def test_sequences_of_a_request_differ_and_the_first_is_that_of_a_single_one(node: GeneratorNode) -> None:
    several = await node.generate(make_request(num_sequences=4))
    single = await node.generate(make_request())
    assert several.sequences[0].token_ids == single.sequences[0].token_ids
    assert len({sequence.token_ids for sequence in several.sequences}) == 4


async def test_seed_decides_the_text(node: GeneratorNode) -> None:
    texts = [(await node.generate(make_request(seed=seed))).sequences[0].text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


async def test_seeded_text_is_the_same_alone_in_any_batch_and_after_preemption(
    node: GeneratorNode, start_node: StartNode
) -> None:
    requests = [make_request(tuple(range(40, 45 + index)), seed=index, max_tokens=120) for index in range(24)]
    alone = [(await node.generate(request)).sequences[0].token_ids for request in requests]
    preempting = await start_node(max_num_seqs=24, max_batched_tokens=16, enable_prefix_reuse=False)
    together = await asyncio.gather(*[preempting.generate(request) for request in requests])
    assert [result.sequences[0].token_ids for result in together] == alone
    # 24 sequences of up to 148 tokens do not fit: some were preempted.
    assert preempting.stats().num_blocks * 4 < sum(len(tokens) + 5 for tokens in alone)


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 12), seed=st.integers(0, 50))
async def test_resumed_answer_is_the_rest_of_the_undisturbed_one(node: GeneratorNode, cut: int, seed: int) -> None:
    """Penalties, stop strings that span the cut and log-probabilities included."""
    fields: dict[str, Any] = {
        "seed": seed,
        "logprobs": 1,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.5,
        "stop": ("qu", "th", "\n\n"),
    }
    whole = await chunks_of(node, make_request(**fields))
    delivered: list[GenerateChunk] = []
    for chunk in whole:
        if sum(len(before.token_ids) for before in delivered) + len(chunk.token_ids) > cut:
            break
        delivered.append(chunk)
    if delivered and delivered[-1].finish_reason is not None:
        return
    tokens = tuple(token for chunk in delivered for token in chunk.token_ids)
    rest = await chunks_of(node, make_request(**fields, generated=(tokens,)))

    def told(chunks: list[GenerateChunk]) -> tuple[Any, ...]:
        return (
            "".join(chunk.text for chunk in chunks),
            [token for chunk in chunks for token in chunk.token_ids],
            [entry.chosen.token_id for chunk in chunks for entry in chunk.logprobs or ()],
            chunks[-1].finish_reason,
            chunks[-1].stop_reason,
            chunks[-1].usage and chunks[-1].usage.completion_tokens,
        )

    assert told(delivered + rest) == told(whole)


async def test_stop_string_ends_the_text_before_itself(node: GeneratorNode) -> None:
    long = {"max_tokens": 60, "ignore_eos": True}
    text = (await node.generate(make_request(**long))).sequences[0].text
    stop = text[20:23]
    assert len(stop) == 3
    cut = (await node.generate(make_request(**long, stop=(stop,)))).sequences[0]
    assert cut.text == text[: text.index(stop)]
    assert (cut.finish_reason, cut.stop_reason) == (FinishReason.STOP, stop)
    kept = (await node.generate(make_request(**long, stop=(stop,), include_stop_str_in_output=True))).sequences[0]
    assert kept.text == text[: text.index(stop) + len(stop)]


async def test_stop_token_ends_the_text_and_stays_in_it(node: GeneratorNode) -> None:
    whole = (await node.generate(make_request(max_tokens=20, ignore_eos=True))).sequences[0]
    stop_token = next(token for token in whole.token_ids[5:] if token > 2)
    first = whole.token_ids.index(stop_token)
    result = await node.generate(make_request(max_tokens=20, ignore_eos=True, stop_token_ids=(stop_token,)))
    stopped = result.sequences[0]
    assert stopped.token_ids == whole.token_ids[: first + 1]
    assert (stopped.finish_reason, stopped.stop_reason) == (FinishReason.STOP, stop_token)
    as_long = await node.generate(make_request(max_tokens=first + 1, ignore_eos=True))
    assert stopped.text == as_long.sequences[0].text != ""
    assert result.usage.completion_tokens == first + 1


@pytest.mark.parametrize("as_stop_token", [True, False])
@pytest.mark.parametrize(("include_stop", "shown"), [(False, ""), (True, "<|im_end|>")])
async def test_special_end_token_is_counted_and_shown_only_on_request(
    node: GeneratorNode, as_stop_token: bool, include_stop: bool, shown: str
) -> None:
    request = make_request(
        allowed_token_ids=(IM_END_ID,),
        stop_token_ids=(IM_END_ID,) if as_stop_token else (),
        include_stop_str_in_output=include_stop,
        skip_special_tokens=False,
    )
    result = await node.generate(request)
    assert result.sequences[0].text == shown
    assert result.sequences[0].token_ids == (IM_END_ID,)
    assert result.sequences[0].finish_reason is FinishReason.STOP
    assert result.usage.completion_tokens == 1


async def test_characters_are_bounded_in_code_points(node: GeneratorNode) -> None:
    for limit in range(1, 40):
        sequence = (await node.generate(make_request(max_tokens=200, max_characters=limit, seed=limit))).sequences[0]
        assert 0 < len(sequence.text) <= limit or sequence.finish_reason is FinishReason.STOP
    await idle(node)


@pytest.mark.parametrize("ending", ["stop", "max_characters"])
@pytest.mark.parametrize("is_streamed", [True, False])
async def test_tokens_computed_beyond_the_end_of_the_text_are_not_counted(
    node: GeneratorNode, start_node: StartNode, ending: str, is_streamed: bool
) -> None:
    """Tokens of a stream that wait for each other are looked at late."""
    patient = await start_node(stream_interval_s=60.0)
    text = (await node.generate(make_request())).sequences[0].text
    request = make_request(**{"stop": (text[3:5],)} if ending == "stop" else {"max_characters": 4})
    expected = await node.generate(request)
    assert expected.usage.completion_tokens < SAMPLING["max_tokens"]
    if is_streamed:
        chunks = await chunks_of(patient, request)
        token_ids = tuple(token_id for chunk in chunks for token_id in chunk.token_ids)
        text, usage = "".join(chunk.text for chunk in chunks), chunks[-1].usage
    else:
        answer = await patient.generate(request)
        token_ids, text, usage = answer.sequences[0].token_ids, answer.sequences[0].text, answer.usage
    assert (token_ids, text) == (expected.sequences[0].token_ids, expected.sequences[0].text)
    assert usage is not None
    assert usage.completion_tokens == expected.usage.completion_tokens == len(token_ids)


async def test_no_detokenizing_gives_tokens_without_text(node: GeneratorNode) -> None:
    sequence = (await node.generate(make_request(detokenize=False))).sequences[0]
    assert sequence.text == ""
    assert sequence.token_ids == (await node.generate(make_request())).sequences[0].token_ids
    with pytest.raises(InvalidParameter) as error:
        await node.generate(make_request(detokenize=False, stop=("x",)))
    assert error.value.param == "stop"


async def test_prompt_logprobs_come_with_the_first_chunk_of_the_first_sequence(node: GeneratorNode) -> None:
    chunks = await chunks_of(node, make_request(num_sequences=2, prompt_logprobs=2))
    told = [chunk.prompt_logprobs for chunk in chunks if chunk.prompt_logprobs is not None]
    assert len(told) == 1
    assert told[0][0] is None
    assert [entry.chosen.token_id for entry in told[0][1:] if entry] == list(PROMPT[1:])
    assert all(len(entry.top) == 2 for entry in told[0][1:] if entry)


async def test_closed_stream_and_cancelled_call_leave_nothing_running(node: GeneratorNode) -> None:
    async with aclosing(node.stream(make_request(max_tokens=200, ignore_eos=True))) as stream:
        await anext(stream)
    call = asyncio.create_task(node.generate(make_request(max_tokens=200, ignore_eos=True)))
    async with asyncio.timeout(10):
        while not node.stats().num_running:
            await asyncio.sleep(0)
    call.cancel()
    await idle(node)


async def test_cached_prefix_is_counted_and_changes_nothing(node: GeneratorNode) -> None:
    prompt = tuple(range(100, 160))
    first = await node.generate(make_request(prompt))
    second = await node.generate(make_request(prompt))
    assert second.sequences == first.sequences
    assert (first.usage.cached_tokens, second.usage.cached_tokens) == (0, 56)


async def test_health_before_start_and_after_stop(directory: Path) -> None:
    engine = EngineConfig(dtype="float64")  # the default one is compiled first, which takes long
    node = GeneratorNode(ModelConfig(id="tiny", source=str(directory), context_length=64, engine=engine))
    with pytest.raises(EngineDead):
        await node.check_health()
    await node.start()
    await node.check_health()
    await node.stop()
    with pytest.raises(EngineDead):
        await node.check_health()
