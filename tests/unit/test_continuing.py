"""Answers whose replica is lost in the middle: the client gets what it would have got."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from itertools import chain, repeat
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.config import EngineConfig, ModelConfig
from deployments.continuing import MAX_LOSSES, MAX_LOSSES_IN_ALL, REPLICAS_LOST, ContinuingGenerator
from deployments.errors import InvalidParameter, Overloaded, ReplicaLost
from deployments.generator import GeneratorNode
from deployments.graph import Generator
from deployments.types import (
    FinishReason,
    GenerateChunk,
    GenerateRequest,
    GenerateResult,
    PositionLogprobs,
    SamplingParams,
    TokenLogprob,
)
from tests.factories import make_tiny_model
from tests.fakes import FakeGenerator
from tests.recording_meter import RecordingMeter

pytestmark = pytest.mark.asyncio(loop_scope="module")

NEVER = 10**6


class Pauses:
    """Sleeps not at all, and knows for how long it should have."""

    def __init__(self) -> None:
        self.all_s: list[float] = []

    async def __call__(self, pause_s: float) -> None:
        self.all_s.append(pause_s)


class Dying:
    """A generator whose replica dies, call after call, once it has sent so many chunks."""

    def __init__(self, generator: Generator, chunks_before_death: Sequence[int]) -> None:
        self._generator = generator
        self._lives: Iterator[int] = chain(chunks_before_death, repeat(NEVER))
        self.requests: list[GenerateRequest] = []

    async def generate(self, request: GenerateRequest) -> GenerateResult:
        self.requests.append(request)
        result = await self._generator.generate(request)
        if next(self._lives) != NEVER:
            raise ReplicaLost("gone")
        return result

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        self.requests.append(request)
        left = next(self._lives)
        async with aclosing(self._generator.stream(request)) as chunks:
            async for chunk in chunks:
                if left == 0:
                    raise ReplicaLost("gone")
                left -= 1
                yield chunk
        if left == 0:
            raise ReplicaLost("gone")

    async def check_health(self) -> None:
        await self._generator.check_health()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GeneratorNode]:
    directory = make_tiny_model(tmp_path_factory.mktemp("tiny"), dtype="float64")
    engine = EngineConfig(dtype="float64", block_size=4, kv_cache_bytes=600 * 1024, stream_interval_s=0)
    node = GeneratorNode(ModelConfig(id="tiny", source=str(directory), context_length=256, engine=engine))
    await node.start()
    yield node
    await node.stop()


def told(chunks: Sequence[GenerateChunk], num_sequences: int) -> list[Any]:
    """Everything that a client is told: by sequence, whose chunks come in any order, and the usage."""
    sequences = [
        (
            [token_id for chunk in own for token_id in chunk.token_ids],
            "".join(chunk.text for chunk in own),
            [rounded(position) for chunk in own for position in chunk.logprobs or ()],
            [(chunk.finish_reason, chunk.stop_reason) for chunk in own if chunk.finish_reason is not None],
            [rounded(chunk.prompt_logprobs) for chunk in own if chunk.prompt_logprobs is not None],
        )
        for own in ([chunk for chunk in chunks if chunk.index == index] for index in range(num_sequences))
    ]
    usages = [(chunk.usage.prompt_tokens, chunk.usage.completion_tokens) for chunk in chunks if chunk.usage is not None]
    return [sequences, usages]


def rounded(part: Any) -> Any:
    """Logarithms to nine digits: a prompt that is computed together with answered tokens rounds otherwise."""
    match part:
        case TokenLogprob():
            return (part.token_id, round(part.logprob, 9), part.text)
        case PositionLogprobs():
            return (rounded(part.chosen), rounded(part.top))
        case tuple():
            return [rounded(item) for item in part]
        case _:
            return part


SAMPLING = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 14),
    seed=st.integers(0, 50),
    min_tokens=st.integers(0, 3),
    stop=st.sampled_from([(), ("e",), ("the", " s"), ("\n",)]),
    max_characters=st.sampled_from([None, 9]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 1.0]),
    logprobs=st.sampled_from([None, 0, 2]),
    prompt_logprobs=st.sampled_from([None, 1]),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sampling=SAMPLING,
    num_sequences=st.integers(1, 3),
    deaths=st.lists(st.integers(0, 6), max_size=3),
)
async def test_a_stream_is_what_it_would_have_been(
    node: GeneratorNode, sampling: SamplingParams, num_sequences: int, deaths: list[int]
) -> None:
    request = GenerateRequest("r", "tiny", (40, 41, 42, 90, 260), sampling, num_sequences)
    undisturbed = [chunk async for chunk in node.stream(request)]
    continuing = ContinuingGenerator(Dying(node, deaths), sleep=Pauses())
    continued = [chunk async for chunk in continuing.stream(request)]
    assert told(continued, num_sequences) == told(undisturbed, num_sequences)


async def test_a_whole_answer_begins_again(node: GeneratorNode) -> None:
    request = GenerateRequest("r", "tiny", (40, 41, 42), SamplingParams(max_tokens=8, seed=3))
    dying = Dying(node, [0, 0])
    result = await ContinuingGenerator(dying, sleep=Pauses()).generate(request)
    assert result.sequences == (await node.generate(request)).sequences
    assert len(dying.requests) == 3


async def test_only_what_is_missing_is_asked_for() -> None:
    dying = Dying(FakeGenerator(*"abcdefgh"), [2])
    request = GenerateRequest("r", "m", (1,), SamplingParams())
    chunks = [chunk async for chunk in ContinuingGenerator(dying).stream(request)]
    delivered = tuple(token_id for chunk in chunks[:2] for token_id in chunk.token_ids)
    assert dying.requests[1].generated == (delivered,)


async def test_replicas_that_die_at_once_again_and_again_end_the_request() -> None:
    dying = Dying(FakeGenerator("a", "b"), [0] * 100)
    request = GenerateRequest("r", "m", (1,), SamplingParams())
    continuing = ContinuingGenerator(dying, sleep=Pauses())
    with pytest.raises(ReplicaLost):
        [chunk async for chunk in continuing.stream(request)]
    assert len(dying.requests) == MAX_LOSSES
    with pytest.raises(ReplicaLost):
        await continuing.generate(request)


async def test_losses_in_a_row_outlast_the_health_checks_that_a_replica_may_fail() -> None:
    pauses = Pauses()
    request = GenerateRequest("r", "m", (1,), SamplingParams())
    dying = Dying(FakeGenerator("a"), [0] * (MAX_LOSSES - 1))
    texts = [chunk.text async for chunk in ContinuingGenerator(dying, sleep=pauses).stream(request)]
    assert "".join(texts) == "a"
    # Serve asks every two seconds, give or take a tenth, and has enough of a replica that has failed three times.
    assert sum(pauses.all_s) > 8
    assert len(pauses.all_s) == MAX_LOSSES - 2


async def test_one_loss_after_the_other_is_no_reason_to_pause_while_tokens_come() -> None:
    pauses = Pauses()
    dying = Dying(FakeGenerator(*"abcd"), [1, 1, 1])
    request = GenerateRequest("r", "m", (1,), SamplingParams())
    [chunk async for chunk in ContinuingGenerator(dying, sleep=pauses).stream(request)]
    assert len(dying.requests) == 4
    assert not pauses.all_s


async def test_a_request_that_kills_every_replica_after_a_token_is_ended() -> None:
    dying = Dying(FakeGenerator(*"abcdefghijklmnopqrstuvwxyz"), [1] * 100)
    with pytest.raises(ReplicaLost):
        [chunk async for chunk in ContinuingGenerator(dying).stream(GenerateRequest("r", "m", (1,), SamplingParams()))]
    assert len(dying.requests) == MAX_LOSSES_IN_ALL


class Refusing:
    """Loses its first replica after a chunk; the others refuse so often before they take a request."""

    def __init__(self, refusals: int) -> None:
        self._refusals = refusals
        self._is_first = True

    async def generate(self, request: GenerateRequest) -> GenerateResult:
        raise NotImplementedError(request)

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        assert request.sampling.seed == 0
        is_first, self._is_first = self._is_first, False
        if not is_first and self._refusals:
            self._refusals -= 1
            raise Overloaded("full", 60.0)
        if is_first:
            yield GenerateChunk(0, (1,), "a")
            raise ReplicaLost("gone")
        yield GenerateChunk(0, (2,), "b", finish_reason=FinishReason.LENGTH)

    async def check_health(self) -> None: ...


async def test_after_a_loss_an_overload_is_waited_for() -> None:
    pauses = Pauses()
    request = GenerateRequest("r", "m", (1,), SamplingParams())
    texts = [chunk.text async for chunk in ContinuingGenerator(Refusing(3), sleep=pauses).stream(request)]
    assert texts == ["a", "b"]
    assert pauses.all_s == [5.0] * 3
    with pytest.raises(Overloaded, match="full"):
        [chunk async for chunk in ContinuingGenerator(Refusing(100), sleep=pauses).stream(request)]


async def test_an_overload_before_any_loss_is_the_answer() -> None:
    generator = FakeGenerator("a", error=Overloaded("full"))
    with pytest.raises(Overloaded):
        await ContinuingGenerator(generator).generate(GenerateRequest("r", "m", (1,), SamplingParams()))
    assert len(generator.requests) == 1


async def test_other_errors_are_not_tried_again() -> None:
    generator = FakeGenerator("a", error=InvalidParameter("no", "prompt"))
    with pytest.raises(InvalidParameter):
        [
            chunk
            async for chunk in ContinuingGenerator(generator).stream(GenerateRequest("r", "m", (1,), SamplingParams()))
        ]
    assert len(generator.requests) == 1


async def test_closing_a_stream_ends_the_work() -> None:
    generator = FakeGenerator("a", hang=True)
    stream = ContinuingGenerator(generator).stream(GenerateRequest("r", "m", (1,), SamplingParams()))
    async for _ in stream:
        break
    await stream.aclose()
    await generator.closed.wait()


async def test_every_lost_replica_is_counted_for_its_model() -> None:
    meter = RecordingMeter()
    request = GenerateRequest("r", "base", (1, 2), SamplingParams(max_tokens=5))
    dying = Dying(FakeGenerator("ab", "cde"), [0, 1])
    await ContinuingGenerator(dying, meter, sleep=Pauses()).generate(request)
    stream = ContinuingGenerator(Dying(FakeGenerator("ab", "cde"), [1]), meter).stream(request)
    assert [chunk async for chunk in stream]
    assert meter.total(REPLICAS_LOST, model="base") == 3
