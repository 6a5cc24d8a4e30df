"""From a command to the graph and back: admission, ranking, several prompts, failures and cancellation."""

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from deployments.config import ModelConfig
from deployments.errors import ContextLengthExceeded, GenerationFailed, InvalidParameter, ModelNotFound
from deployments.graph import Graph
from deployments.types import SamplingParams, TextPrompt
from serve_app.use_cases.callers import Caller, Dialect, Principal
from serve_app.use_cases.generate import GenerateCommand, TextGeneration
from tests.fakes import FakeGenerator, FakeTokenizer, make_admission, make_models

MODELS = make_models(ModelConfig(id="base", source="/models/base", aliases=("alias",)))


def make_generation(
    generator: FakeGenerator | None = None, *, context_length: int = 100
) -> tuple[TextGeneration, FakeGenerator]:
    generator = generator or FakeGenerator()
    graph = Graph(tokenizer=FakeTokenizer(context_length=context_length), generators={"base": generator})
    return TextGeneration(graph, MODELS, make_admission()), generator


def make_command(*prompts: str, **fields: Any) -> GenerateCommand:
    sampling = fields.pop("sampling", SamplingParams())
    return GenerateCommand(
        **{
            "caller": Caller("r", Dialect.TOTALGPT, Principal("alice", "key-of-alice")),
            "model": "base",
            "prompts": tuple(map(TextPrompt, prompts or ("hello",))),
            "sampling": sampling,
            "max_tokens": 20,
            **fields,
        }
    )


async def test_alias_reaches_its_model_and_account_salts_the_cache() -> None:
    generation, generator = make_generation()
    await generation.generate(make_command(model="alias"))
    assert (generator.request.model, generator.request.cache_salt) == ("base", "alice")
    with pytest.raises(ModelNotFound):
        await generation.generate(make_command(model="other"))


async def test_length_is_what_was_asked_or_what_fits() -> None:
    generation, generator = make_generation(context_length=30)
    for max_tokens in (3, 100, None):
        await generation.generate(make_command("x" * 20, max_tokens=max_tokens))
    assert [request.sampling.max_tokens for request in generator.requests] == [3, 10, 10]


async def test_length_beyond_the_room_is_refused_where_the_command_says_so() -> None:
    generation, _ = make_generation(context_length=30)
    with pytest.raises(ContextLengthExceeded):
        await generation.generate(make_command("x" * 20, max_tokens=11, overflow="reject"))


@pytest.mark.parametrize("overflow", ["clamp", "reject"])
async def test_prompt_that_leaves_no_room_is_refused(overflow: str) -> None:
    generation, generator = make_generation(context_length=30)
    with pytest.raises(ContextLengthExceeded, match="30"):
        await generation.generate(make_command("short", "x" * 30, overflow=overflow, max_tokens=1))
    assert generator.requests == []


async def test_min_tokens_never_exceeds_what_fits() -> None:
    generation, generator = make_generation(context_length=30)
    await generation.generate(make_command("x" * 20, sampling=SamplingParams(min_tokens=500), max_tokens=None))
    assert generator.request.sampling.min_tokens == 10


async def test_request_without_a_seed_gets_a_fresh_one() -> None:
    generation, generator = make_generation()
    for seed in (None, None, -5):
        await generation.generate(make_command(seed=seed))
    first, second, given = [request.sampling.seed for request in generator.requests]
    assert first != second
    assert given == -5


async def test_prompts_are_answered_in_their_order() -> None:
    generation, generator = make_generation()
    answers = await generation.generate(make_command("one", "three"))
    assert [len(answer.prompt_token_ids) for answer in answers] == [3, 5]
    assert [request.request_id for request in generator.requests] == ["r-0", "r-1"]


async def test_best_of_answers_the_likeliest_and_counts_all() -> None:
    generator = FakeGenerator(texts=[["zero"], ["one"], ["two"]])
    generation, _ = make_generation(generator)
    [answer] = await generation.generate(make_command(n=2, best_of=3))
    assert generator.request.num_sequences == 3
    assert [sequence.index for sequence in answer.result.sequences] == [0, 1]
    # By the fake's probabilities of each token: "one" has three of -1/2, "two" three of -1/3, "zero" four of -1.
    assert [sequence.text for sequence in answer.result.sequences] == ["two", "one"]
    assert all(sequence.logprobs is None for sequence in answer.result.sequences)
    assert answer.result.usage.completion_tokens == 10


async def test_best_of_keeps_logprobs_that_were_asked_for() -> None:
    generation, _ = make_generation(FakeGenerator(texts=[["zero"], ["one"]]))
    [answer] = await generation.generate(make_command(best_of=2, sampling=SamplingParams(logprobs=0)))
    assert answer.result.sequences[0].logprobs is not None


async def test_best_of_cannot_be_streamed() -> None:
    generation, _ = make_generation()
    with pytest.raises(InvalidParameter) as error:
        async with aclosing(generation.stream(make_command(best_of=2))) as stream:
            await anext(stream)
    assert error.value.param == "best_of"


async def test_stream_interleaves_prompts_and_tells_which() -> None:
    generation, _ = make_generation()
    texts: dict[int, str] = {}
    async with aclosing(generation.stream(make_command("one", "two"))) as stream:
        async for piece in stream:
            texts[piece.prompt_index] = texts.get(piece.prompt_index, "") + piece.chunk.text
    assert texts == {0: " there was light", 1: " there was light"}


async def test_error_of_a_stream_comes_after_what_was_generated() -> None:
    generation, _ = make_generation(FakeGenerator("a", "b", error=GenerationFailed("broken")))
    seen = []
    with pytest.raises(GenerationFailed):
        async with aclosing(generation.stream(make_command())) as stream:
            async for piece in stream:
                seen.append(piece.chunk.text)
    assert seen == ["a", "b"]


async def test_closing_the_stream_closes_every_prompts_generation() -> None:
    generator = FakeGenerator("a", hang=True)
    generation, _ = make_generation(generator)
    async with aclosing(generation.stream(make_command("one", "two"))) as stream:
        await anext(stream)
        await anext(stream)
    assert (len(generator.requests), generator.num_cancelled) == (2, 2)


async def test_cancelling_the_call_cancels_every_prompts_generation() -> None:
    generator = FakeGenerator("a", hang=True)
    generation, _ = make_generation(generator)
    call = asyncio.create_task(generation.generate(make_command("one", "two")))
    await generator.started.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert generator.num_cancelled == len(generator.requests) >= 1


def test_names_of_models_must_be_distinct() -> None:
    with pytest.raises(ValueError, match="'alias'"):
        make_models(*MODELS.catalog.models, ModelConfig(id="alias", source="/elsewhere"))
