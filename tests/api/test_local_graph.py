"""The HTTP surface over the real node classes in this process: tokenizer, engine and text, with two tiny models."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
import pytest_asyncio

from deployments.config import EngineConfig, GraphConfig, ModelConfig
from deployments.local_graph import LocalGraph
from serve_app.api import create_api
from serve_app.config import AppConfig
from serve_app.use_cases.generate import TextGeneration
from tests.api.conftest import make_services
from tests.factories import make_tiny_model
from tests.fakes import KEY, make_admission, make_models

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    home = tmp_path_factory.mktemp("models")
    engine = EngineConfig(dtype="float64", kv_cache_bytes=8_000_000)
    llama, gpt2 = make_tiny_model(home / "llama"), make_tiny_model(home / "gpt2", architecture="gpt2", vocab_size=300)
    models = (
        ModelConfig(id="tiny/llama", source=str(llama), aliases=("standard",), engine=engine),
        ModelConfig(id="tiny-gpt2", source=str(gpt2), aliases=("second", "zweites"), engine=engine),
    )
    config = AppConfig(graph=GraphConfig(models=models))
    names = make_models(*models)

    async with LocalGraph(config.graph) as graph:
        generation = TextGeneration(graph, names, make_admission())
        services = replace(make_services(), config=config, graph=graph, models=names, generation=generation)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(create_api(services)),
            base_url="http://test",
            headers={"Authorization": f"Bearer {KEY}"},
        ) as client:
            yield client


async def post(client: httpx.AsyncClient, path: str, **body: object) -> dict[str, Any]:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


async def complete(client: httpx.AsyncClient, **body: object) -> dict[str, Any]:
    defaults = {"model": "standard", "prompt": "The quick brown", "max_tokens": 12, "seed": 3, "ignore_eos": True}
    return await post(client, "/v1/completions", **{**defaults, **body})


async def test_all_three_dialects_answer_from_one_graph(client: httpx.AsyncClient) -> None:
    aitextgen = await post(client, "/v1/aitextgen/generate", prompt="Once upon a time", max_length=9)
    assert set(aitextgen) == {"generated_text", "tokens_generated", "generation_time"}
    assert 0 < int(str(aitextgen["tokens_generated"])) <= 9
    inferkit = await post(client, "/v1/models/standard/generate", prompt={"text": "Hello"}, length=50)
    assert 0 < len(str(inferkit["text"])) <= 50
    totalgpt = await complete(client)
    assert (totalgpt["usage"]["prompt_tokens"], totalgpt["usage"]["completion_tokens"]) == (6, 12)


async def test_aliases_name_the_same_model_and_models_differ(client: httpx.AsyncClient) -> None:
    texts = {
        name: (await complete(client, model=name))["choices"][0]["text"]
        for name in ("standard", "tiny/llama", "tiny-gpt2", "second", "zweites")
    }
    assert texts["standard"] == texts["tiny/llama"] != texts["tiny-gpt2"] == texts["second"] == texts["zweites"]
    by_path = await client.post("/v1/tiny/llama/completions", json={"prompt": "The quick brown", "seed": 3})
    assert (
        by_path.json()["choices"][0]["text"]
        == (await complete(client, max_tokens=16, ignore_eos=False))["choices"][0]["text"]
    )


async def test_stream_is_the_whole_answer_in_pieces(client: httpx.AsyncClient) -> None:
    body = {"n": 2, "prompt": ["The quick", "Once upon"], "logprobs": 1}
    whole = (await complete(client, **body))["choices"]
    request = {"model": "standard", "max_tokens": 12, "seed": 3, "ignore_eos": True, "stream": True, **body}
    texts = dict.fromkeys(range(4), "")
    async with client.stream("POST", "/v1/completions", json=request) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                choice = json.loads(line.removeprefix("data: "))["choices"][0]
                texts[choice["index"]] += choice["text"]
    assert [texts[index] for index in range(4)] == [choice["text"] for choice in whole]


async def test_echoed_logprobs_follow_the_prompt(client: httpx.AsyncClient) -> None:
    answer = await complete(client, echo=True, logprobs=1, max_tokens=2, temperature=0)
    [choice] = answer["choices"]
    logprobs = choice["logprobs"]
    assert choice["text"].startswith("The quick brown")
    assert "".join(logprobs["tokens"][: answer["usage"]["prompt_tokens"]]) == "The quick brown"
    assert logprobs["token_logprobs"][0] is None
    assert all(value < 0 for value in logprobs["token_logprobs"][1:])
    assert len(logprobs["tokens"]) == answer["usage"]["total_tokens"]


async def test_count_of_tokens_is_what_a_completion_is_charged(client: httpx.AsyncClient) -> None:
    prompt = "Grüße aus München, 今日は! 😀"
    counted = await post(client, "/utils/token_counter", model="second", prompt=prompt)
    used = (await complete(client, model="second", prompt=prompt))["usage"]
    assert counted["total_tokens"] == used["prompt_tokens"]


async def test_seeded_answers_do_not_depend_on_the_company(client: httpx.AsyncClient) -> None:
    alone = [(await complete(client, seed=seed))["choices"][0]["text"] for seed in range(12)]
    together = await asyncio.gather(*[complete(client, seed=seed) for seed in range(12)])
    assert [answer["choices"][0]["text"] for answer in together] == alone


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("prompt", {"prompt": [5, 384]}),
        ("stop_token_ids", {"stop_token_ids": [100_000]}),
        ("logit_bias", {"logit_bias": {"384": 1}}),
        ("allowed_token_ids", {"allowed_token_ids": [4, 384]}),
        ("prompt", {"prompt": "x " * 600}),
    ],
)
async def test_what_only_the_model_can_judge_is_a_400_that_names_the_field(
    client: httpx.AsyncClient, field: str, body: dict[str, object]
) -> None:
    response = await client.post("/v1/completions", json={"model": "standard", "prompt": "a", **body})
    assert (response.status_code, response.json()["error"]["param"]) == (400, field)


async def test_inferkit_text_goes_on_for_ever(client: httpx.AsyncClient) -> None:
    """The documented way to unlimited length: prompt plus output again and again, the last 3000 characters of it."""
    text = "Hello"
    while len(text) <= 3600:
        body = {
            "prompt": {"text": text[-3000:], "isContinuation": len(text) > 3000},
            "length": 1000,
            "forceNoEnd": True,
        }
        answer = await post(client, "/v1/models/standard/generate", **body)
        assert answer["reachedEnd"] is False
        assert 0 < len(str(answer["text"])) <= 1000
        text += str(answer["text"])
