"""The token counter, tokenizing and detokenizing of the TotalGPT API."""

from typing import Any

import pytest

from deployments.types import PromptStart, TextPrompt
from serve_app.config import TotalGPTConfig
from tests.api.conftest import MODEL, ClientFactory
from tests.fakes import DOCUMENT_TOKEN, FakeTokenizer, token_ids_of

COUNTER = "/utils/token_counter"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


@pytest.mark.parametrize("path", [COUNTER, "/v1/utils/token_counter"])
async def test_counter_answers_the_documented_keys(make_client: ClientFactory, path: str) -> None:
    client = await make_client()
    response = await client.post(path, json={"model": "standard", "prompt": "Your prompt"})
    assert response.status_code == 200
    assert response.json() == {
        "total_tokens": 11,
        "request_model": "standard",
        "model_used": f"Tritext/{MODEL}",
        "tokenizer_type": "huggingface_tokenizer",
    }


async def test_prefix_of_the_model_is_configured(make_client: ClientFactory) -> None:
    client = await make_client(totalgpt=TotalGPTConfig(model_prefix=""))
    response = await client.post(COUNTER, json={"model": MODEL, "prompt": "x"})
    assert response.json()["model_used"] == MODEL


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"prompt": "Your prompt"}),
        ("/v1/completions", {"prompt": ["Your", "prompt"]}),
        ("/v1/completions", {"prompt": [1, 2, 3]}),
        ("/v1/chat/completions", {"messages": MESSAGES}),
    ],
)
async def test_counter_agrees_with_the_usage(make_client: ClientFactory, path: str, fields: dict[str, Any]) -> None:
    tokenizer = FakeTokenizer()
    client = await make_client(tokenizer=tokenizer)
    request = {"model": MODEL, **fields}
    counted = (await client.post(COUNTER, json=request)).json()["total_tokens"]
    assert counted == (await client.post(path, json=request)).json()["usage"]["prompt_tokens"]
    first, second = tokenizer.requests
    assert first.prompts == second.prompts


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("prompt", {}),
        ("prompt", {"prompt": None, "messages": None}),
        ("prompt", {"prompt": "x", "messages": MESSAGES}),
        ("prompt", {"prompt": 5}),
        ("prompt", {"prompt": ""}),
        ("messages", {"messages": []}),
        ("messages[0].role", {"messages": [{"content": "x"}]}),
        ("contents", {"contents": [{}]}),
        ("tools", {"prompt": "x", "tools": [{}]}),
        ("system", {"prompt": "x", "system": "y"}),
        ("model", {"prompt": "x", "model": None}),
        ("model", {"prompt": "x", "model": 5}),
    ],
)
async def test_counter_refuses_by_name(make_client: ClientFactory, param: str, fields: dict[str, Any]) -> None:
    client = await make_client()
    response = await client.post(COUNTER, json={"model": MODEL, **fields})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize("path", [COUNTER, "/tokenize", "/detokenize"])
async def test_key_and_model_come_first(make_client: ClientFactory, path: str) -> None:
    stranger, friend = await make_client(key=None), await make_client()
    assert (await stranger.post(path, content=b"{")).status_code == 401
    assert (await friend.post(path, json={"model": "nobody"})).status_code == 404


@pytest.mark.parametrize("path", ["/tokenize", "/v1/tokenize"])
async def test_tokenize(make_client: ClientFactory, path: str) -> None:
    client = await make_client(tokenizer=FakeTokenizer(context_length=99))
    response = await client.post(path, json={"model": MODEL, "prompt": "Hé"})
    assert response.json() == {"count": 2, "max_model_len": 99, "tokens": [72, 233], "token_strs": None}


async def test_tokenize_with_texts_and_without_a_model(make_client: ClientFactory) -> None:
    client = await make_client()
    response = await client.post("/tokenize", json={"prompt": "Hé", "return_token_strs": True})
    assert response.json()["token_strs"] == ["H", "é"]


@pytest.mark.parametrize(
    ("value", "start"), [(None, PromptStart.DEFAULT), (True, PromptStart.DEFAULT), (False, PromptStart.PLAIN)]
)
async def test_tokenize_without_special_tokens(make_client: ClientFactory, value: Any, start: PromptStart) -> None:
    tokenizer = FakeTokenizer()
    client = await make_client(tokenizer=tokenizer)
    await client.post("/tokenize", json={"prompt": "x", "add_special_tokens": value})
    assert tokenizer.requests[0].prompts == (TextPrompt("x", start),)


async def test_tokenize_messages(make_client: ClientFactory) -> None:
    client = await make_client()
    messages = [{"role": "user", "content": "Hi"}]
    opened = await client.post("/tokenize", json={"messages": messages})
    assert opened.json()["tokens"] == list(token_ids_of("user: Hi\nassistant:"))
    closed = await client.post("/tokenize", json={"messages": messages, "add_generation_prompt": False})
    assert closed.json()["tokens"] == list(token_ids_of("user: Hi"))


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("prompt", {}),
        ("prompt", {"prompt": ["x"]}),
        ("prompt", {"prompt": "x", "messages": MESSAGES}),
        ("add_special_tokens", {"messages": MESSAGES, "add_special_tokens": True}),
        ("return_token_strs", {"prompt": "x", "return_token_strs": 1}),
        ("tools", {"messages": MESSAGES, "tools": [{}]}),
    ],
)
async def test_tokenize_refuses_by_name(make_client: ClientFactory, param: str, fields: dict[str, Any]) -> None:
    client = await make_client()
    response = await client.post("/tokenize", json=fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize("path", ["/detokenize", "/v1/detokenize"])
async def test_detokenize_shows_special_tokens(make_client: ClientFactory, path: str) -> None:
    client = await make_client()
    response = await client.post(path, json={"model": MODEL, "tokens": [DOCUMENT_TOKEN, 72, 233]})
    assert response.json() == {"prompt": "<document>Hé"}


async def test_what_is_tokenized_detokenizes(make_client: ClientFactory) -> None:
    client = await make_client()
    text = "Ünïcode 🌊\n"
    tokens = (await client.post("/tokenize", json={"prompt": text})).json()["tokens"]
    assert (await client.post("/detokenize", json={"tokens": tokens})).json()["prompt"] == text


@pytest.mark.parametrize("tokens", [None, 5, "5", [True], [-1], ["5"], [1.5], [2**31]])
async def test_detokenize_refuses_what_is_no_list_of_ids(make_client: ClientFactory, tokens: Any) -> None:
    client = await make_client()
    response = await client.post("/detokenize", json={"tokens": tokens})
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("tokens")
