"""The InferKit API: the documented requests as they are printed, prompts, streams, and what it refuses."""

import json
from typing import Any

import httpx
import pytest

from deployments.errors import GenerationFailed, Overloaded
from deployments.types import FinishReason, PromptStart, TextPrompt
from serve_app.config import InferKitConfig
from tests.api.conftest import MODEL, ClientFactory
from tests.fakes import KEY, FakeGenerator, FakeTokenizer, text_of

PATH = "/v1/models/standard/generate"

SIMPLE = b"""{
  "prompt": {
    "text": "Hello world!"
  },
  "length": 500
}"""

# With the comma that the documentation prints after `true`, which strict JSON does not have.
COMPLEX = b"""{
  "prompt": {
    "text": "mmand below in the root directory of your project.",
    "isContinuation": true,
  },
  "length": 500,
  "streamResponse": true,
  "forceNoEnd": true,
  "topP": 0.8,
  "temperature": 1.1
}"""


def lines_of(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.text.endswith("\n")
    return [json.loads(line) for line in response.text[:-1].split("\n")]


async def test_documented_simple_request(make_client: ClientFactory) -> None:
    generator = FakeGenerator(" How", " are you?")
    client = await make_client(generator=generator)
    response = await client.post(PATH, content=SIMPLE)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    chunk = {"text": " How are you?", "isFinalChunk": True, "reachedEnd": True}
    assert response.json() == {**chunk, "data": chunk}
    sampling = generator.request.sampling
    assert (sampling.max_characters, sampling.temperature, sampling.top_p) == (500, 1.0, 0.9)
    assert sampling.max_tokens >= 500
    assert sampling.min_tokens == 0
    assert text_of(generator.request.prompt_token_ids) == "Hello world!"


async def test_documented_complex_request(make_client: ClientFactory) -> None:
    generator, tokenizer = FakeGenerator(" run the", " command"), FakeTokenizer()
    client = await make_client(generator=generator, tokenizer=tokenizer)
    response = await client.post(PATH, content=COMPLEX)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/x-ndjson"
    chunks: list[dict[str, Any]] = [
        {"text": " run the", "isFinalChunk": False},
        {"text": " command", "isFinalChunk": False},
        {"text": "", "isFinalChunk": True, "reachedEnd": False},
    ]
    assert lines_of(response) == [{**chunk, "data": chunk} for chunk in chunks]
    sampling = generator.request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_characters) == (1.1, 0.8, 500)
    assert sampling.min_tokens == sampling.max_tokens
    text = "mmand below in the root directory of your project."
    assert tokenizer.requests[0].prompts == (TextPrompt(text, PromptStart.PLAIN),)


@pytest.mark.parametrize(
    ("envelope", "keys"),
    [
        ("both", {"text", "isFinalChunk", "reachedEnd", "data"}),
        ("bare", {"text", "isFinalChunk", "reachedEnd"}),
        ("data", {"data"}),
    ],
)
async def test_envelope_is_a_setting(make_client: ClientFactory, envelope: Any, keys: set[str]) -> None:
    client = await make_client(inferkit=InferKitConfig(envelope=envelope))
    whole = (await client.post(PATH, json={"length": 50})).json()
    assert set(whole) == keys
    last = lines_of(await client.post(PATH, json={"length": 50, "streamResponse": True}))[-1]
    assert set(last) == keys


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"prompt": {"text": "a"}}, TextPrompt("a", PromptStart.DEFAULT)),
        ({"prompt": "a"}, TextPrompt("a", PromptStart.DEFAULT)),
        ({"prompt": {"text": "a", "isContinuation": False}}, TextPrompt("a", PromptStart.DEFAULT)),
        ({"prompt": {"text": "a", "isContinuation": True}}, TextPrompt("a", PromptStart.PLAIN)),
        ({"prompt": {"text": "a"}, "startFromBeginning": True}, TextPrompt("a", PromptStart.DOCUMENT)),
        (
            {"prompt": {"text": "a", "isContinuation": True}, "startFromBeginning": True},
            TextPrompt("a", PromptStart.DOCUMENT),
        ),
        ({}, TextPrompt("\n\n", PromptStart.PLAIN)),
        ({"prompt": None}, TextPrompt("\n\n", PromptStart.PLAIN)),
        ({"startFromBeginning": True}, TextPrompt("", PromptStart.DOCUMENT)),
    ],
)
async def test_where_the_prompt_stands_in_a_document(
    make_client: ClientFactory, fields: dict[str, Any], expected: TextPrompt
) -> None:
    tokenizer = FakeTokenizer()
    client = await make_client(tokenizer=tokenizer)
    response = await client.post(PATH, json={"length": 100, **fields})
    assert response.status_code == 200
    assert tokenizer.requests[0].prompts == (expected,)


@pytest.mark.parametrize(
    "fields",
    [
        {"length": 10},
        {"length": 1000},
        {"topP": 0},
        {"topP": 1.0},
        {"temperature": 0.001},
        {"temperature": 100},
        {"prompt": {"text": "x" * 3000}},
        {"prompt": {"text": "🤔" * 3000}},
        {"keywords": ["fox", "castle"]},
    ],
)
async def test_legal_extremes(make_client: ClientFactory, fields: dict[str, Any]) -> None:
    generator = FakeGenerator()
    client = await make_client(generator=generator)
    assert (await client.post(PATH, json={"length": 100, **fields})).status_code == 200
    if "temperature" in fields:
        assert generator.request.sampling.temperature == fields["temperature"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"length": None}, "length"),
        ({"length": 9}, "length"),
        ({"length": 1001}, "length"),
        ({"length": True}, "length"),
        ({"length": 100.5}, "length"),
        ({"length": "100"}, "length"),
        ({"prompt": {"text": ""}}, "prompt.text"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": {"text": "x" * 3001}}, "prompt.text"),
        ({"prompt": {"text": "🤔" * 3001}}, "prompt.text"),
        ({"prompt": {}}, "prompt.text"),
        ({"prompt": {"text": 1}}, "prompt.text"),
        ({"prompt": {"text": "x", "isContinuation": "yes"}}, "prompt.isContinuation"),
        ({"prompt": {"text": "x", "is_continuation": True}}, "prompt.is_continuation"),
        ({"prompt": ["x"]}, "prompt"),
        ({"prompt": 7}, "prompt"),
        ({"startFromBeginning": 1}, "startFromBeginning"),
        ({"streamResponse": "true"}, "streamResponse"),
        ({"forceNoEnd": 0}, "forceNoEnd"),
        ({"topP": 1.1}, "topP"),
        ({"topP": -0.1}, "topP"),
        ({"topP": True}, "topP"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": 0.0009}, "temperature"),
        ({"temperature": 100.1}, "temperature"),
        ({"keywords": ["x"] * 11}, "keywords"),
        ({"keywords": [1]}, "keywords[0]"),
        ({"top_p": 0.5}, "top_p"),
        ({"seed": 1}, "seed"),
    ],
)
async def test_bad_field_is_400_and_named(make_client: ClientFactory, fields: dict[str, Any], param: str) -> None:
    generator = FakeGenerator()
    client = await make_client(generator=generator)
    response = await client.post(PATH, json={"length": 100, **fields})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert generator.requests == []


async def test_length_is_required(make_client: ClientFactory) -> None:
    client = await make_client()
    response = await client.post(PATH, json={"prompt": {"text": "x"}})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "length is required"


@pytest.mark.parametrize("content_type", [None, "json", "text/plain", "application/x-www-form-urlencoded", "*bad*"])
async def test_any_content_type_is_read_as_json(make_client: ClientFactory, content_type: str | None) -> None:
    client = await make_client()
    headers = {"Content-Type": content_type} if content_type else {}
    assert (await client.post(PATH, content=SIMPLE, headers=headers)).status_code == 200


@pytest.mark.parametrize("authorization", [f"Bearer {KEY}", f"bearer {KEY}", KEY])
async def test_key_comes_with_or_without_the_word_bearer(make_client: ClientFactory, authorization: str) -> None:
    client = await make_client(key=None)
    response = await client.post(PATH, content=SIMPLE, headers={"Authorization": authorization})
    assert response.status_code == 200


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer wrong", "wrong", f"Basic {KEY}"])
async def test_no_valid_key_is_401(make_client: ClientFactory, authorization: str | None) -> None:
    client = await make_client(key=None)
    headers = {"Authorization": authorization} if authorization is not None else {}
    response = await client.post(f"{PATH}?useDemoCredits=true", content=SIMPLE, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["extensions"] == {"code": "UNAUTHENTICATED"}


@pytest.mark.parametrize("name", ["standard", "test-org/test-model", "test-org%2Ftest-model", "test-model"])
async def test_generator_ids_may_contain_slashes(make_client: ClientFactory, name: str) -> None:
    generator = FakeGenerator()
    client = await make_client(generator=generator)
    assert (await client.post(f"/v1/models/{name}/generate", content=SIMPLE)).status_code == 200
    assert generator.request.model == MODEL


async def test_unknown_generator_is_404_even_with_a_bad_body(make_client: ClientFactory) -> None:
    client = await make_client()
    response = await client.post("/v1/models/nope/generate", content=b"{")
    assert response.status_code == 404
    assert response.json()["error"]["extensions"] == {"code": "NOT_FOUND"}


async def test_get_of_the_route_is_405(make_client: ClientFactory) -> None:
    client = await make_client()
    response = await client.get(PATH)
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("finish_reason", "force_no_end", "reached_end"),
    [
        (FinishReason.STOP, False, True),
        (FinishReason.STOP, True, False),
        (FinishReason.LENGTH, False, False),
        (FinishReason.LENGTH, True, False),
    ],
)
async def test_reached_end(
    make_client: ClientFactory, finish_reason: FinishReason, force_no_end: bool, reached_end: bool
) -> None:
    client = await make_client(generator=FakeGenerator("text", finish_reason=finish_reason))
    body = {"length": 100, "forceNoEnd": force_no_end}
    assert (await client.post(PATH, json=body)).json()["reachedEnd"] is reached_end
    lines = lines_of(await client.post(PATH, json={**body, "streamResponse": True}))
    assert lines[-1]["reachedEnd"] is reached_end
    assert all("reachedEnd" not in line and "reachedEnd" not in line["data"] for line in lines[:-1])


async def test_length_is_never_exceeded(make_client: ClientFactory) -> None:
    client = await make_client(generator=FakeGenerator("🤔" * 30))
    body = (await client.post(PATH, json={"length": 10})).json()
    assert body["text"] == "🤔" * 10
    assert body["reachedEnd"] is False


async def test_model_that_ends_at_once_gives_one_final_line(make_client: ClientFactory) -> None:
    client = await make_client(generator=FakeGenerator(texts=[()]))
    lines = lines_of(await client.post(PATH, json={"length": 10, "streamResponse": True}))
    final = {"text": "", "isFinalChunk": True, "reachedEnd": True}
    assert lines == [{**final, "data": final}]


async def test_prompt_longer_than_the_context_keeps_its_end(make_client: ClientFactory) -> None:
    generator = FakeGenerator("x" * 10)
    client = await make_client(generator=generator, tokenizer=FakeTokenizer(context_length=100))
    text = "".join(chr(ord("a") + i % 26) for i in range(3000))
    response = await client.post(PATH, json={"prompt": {"text": text}, "length": 10})
    assert response.status_code == 200
    assert response.json()["text"] == "x" * 10
    assert text_of(generator.request.prompt_token_ids) == text[-60:]
    assert generator.request.sampling.max_tokens == 40


async def test_unlimited_length_as_documented(make_client: ClientFactory) -> None:
    """Prompt plus output is the next prompt, again and again; beyond 3000 code points only its end."""
    generator = FakeGenerator("é🤔" * 500)
    client = await make_client(generator=generator)
    text = "Hello"
    for _ in range(5):
        prompt = {"text": text[-3000:], "isContinuation": len(text) > 3000}
        response = await client.post(PATH, json={"prompt": prompt, "length": 1000})
        assert response.status_code == 200
        text += response.json()["text"]
    assert len(text) == 5005


async def test_overload_keeps_its_status_also_for_a_stream(make_client: ClientFactory) -> None:
    client = await make_client(generator=FakeGenerator(texts=[()], error=Overloaded("busy", 1.2)))
    for stream in (False, True):
        response = await client.post(PATH, json={"length": 100, "streamResponse": stream})
        assert response.status_code == 503
        assert response.headers["retry-after"] == "2"
        assert response.json()["error"]["extensions"] == {"code": "OVERLOADED"}


async def test_error_in_a_started_stream_is_its_last_line(make_client: ClientFactory) -> None:
    client = await make_client(generator=FakeGenerator(" a", error=GenerationFailed("the model failed")))
    response = await client.post(PATH, json={"length": 100, "streamResponse": True})
    assert response.status_code == 200
    first, last = lines_of(response)
    assert first["text"] == " a"
    assert last["error"]["message"] == "the model failed"
    assert last["error"]["extensions"] == {"code": "INTERNAL_SERVER_ERROR"}
