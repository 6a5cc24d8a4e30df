"""The AITextGen API: the documented request, its defaults and ranges, and what it refuses."""

from typing import Any

import pytest

from deployments.types import FinishReason, PromptStart, TextPrompt
from tests.api.conftest import MODEL, OTHER_MODEL, ClientFactory
from tests.fakes import FakeGenerator, FakeTokenizer, text_of

PATH = "/v1/aitextgen/generate"

DOCUMENTED = b"""{
"prompt": "Once upon a time",
"max_length": 100,
"temperature": 0.8
}"""


async def test_documented_request_is_answered_with_exactly_the_documented_keys(make_client: ClientFactory) -> None:
    generator = FakeGenerator(" there", " was a fox")
    client = await make_client(generator=generator)
    response = await client.post(PATH, content=DOCUMENTED, headers={"Content-Type": "application/json"})
    assert response.status_code == 200
    body = response.json()
    assert list(body) == ["generated_text", "tokens_generated", "generation_time"]
    assert body["generated_text"] == " there was a fox"
    assert body["tokens_generated"] == len(" there was a fox")
    assert isinstance(body["generation_time"], float)
    assert body["generation_time"] >= 0
    assert text_of(generator.request.prompt_token_ids) == "Once upon a time"
    assert generator.request.sampling.max_tokens == 100
    assert generator.request.sampling.temperature == 0.8


async def test_defaults_are_those_of_the_documentation(make_client: ClientFactory) -> None:
    generator, tokenizer = FakeGenerator(), FakeTokenizer()
    client = await make_client(generator=generator, tokenizer=tokenizer)
    assert (await client.post(PATH, json={"prompt": "x"})).status_code == 200
    sampling = generator.request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (50, 0.7, 0.9)
    assert tokenizer.requests[0].prompts == (TextPrompt("x", PromptStart.DEFAULT),)


@pytest.mark.parametrize("value", [0, 1, 0.0, 1.0, 0.5])
async def test_temperature_and_top_p_take_their_whole_range(make_client: ClientFactory, value: float) -> None:
    generator = FakeGenerator()
    client = await make_client(generator=generator)
    response = await client.post(PATH, json={"prompt": "x", "temperature": value, "top_p": value})
    assert response.status_code == 200
    assert (generator.request.sampling.temperature, generator.request.sampling.top_p) == (value, value)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["x"]}, "prompt"),
        ({"max_length": 0}, "max_length"),
        ({"max_length": -1}, "max_length"),
        ({"max_length": 1.5}, "max_length"),
        ({"max_length": "50"}, "max_length"),
        ({"max_length": True}, "max_length"),
        ({"max_length": None}, "max_length"),
        ({"temperature": 1.5}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "0.8"}, "temperature"),
        ({"temperature": False}, "temperature"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_p": -1}, "top_p"),
        ({"top_p": []}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"model": 1}, "model"),
        ({"return_full_text": 1}, "return_full_text"),
        ({"length": 10}, "length"),
    ],
)
async def test_bad_field_is_400_and_named(make_client: ClientFactory, changes: dict[str, Any], param: str) -> None:
    generator = FakeGenerator()
    client = await make_client(generator=generator)
    response = await client.post(PATH, json={"prompt": "x", **changes})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert error["message"].startswith(f"{param} ")
    assert error["extensions"]["code"] == "BAD_USER_INPUT"
    assert generator.requests == []


async def test_integer_may_be_written_as_a_float(make_client: ClientFactory) -> None:
    generator = FakeGenerator()
    client = await make_client(generator=generator)
    assert (await client.post(PATH, content=b'{"prompt": "x", "max_length": 2e1, "seed": 7.0}')).status_code == 200
    sampling = generator.request.sampling
    assert (sampling.max_tokens, sampling.seed) == (20, 7)


async def test_missing_prompt_is_400(make_client: ClientFactory) -> None:
    client = await make_client()
    response = await client.post(PATH, json={})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "prompt is required"


async def test_never_more_tokens_than_max_length(make_client: ClientFactory) -> None:
    client = await make_client(generator=FakeGenerator("abcdefgh"))
    body = (await client.post(PATH, json={"prompt": "x", "max_length": 3})).json()
    assert (body["generated_text"], body["tokens_generated"]) == ("abc", 3)


async def test_max_length_beyond_the_context_means_what_fits(make_client: ClientFactory) -> None:
    generator = FakeGenerator(finish_reason=FinishReason.LENGTH)
    client = await make_client(generator=generator, tokenizer=FakeTokenizer(context_length=20))
    assert (await client.post(PATH, json={"prompt": "12345", "max_length": 10**9})).status_code == 200
    assert generator.request.sampling.max_tokens == 15


async def test_prompt_that_fills_the_context_is_400(make_client: ClientFactory) -> None:
    client = await make_client(tokenizer=FakeTokenizer(context_length=5))
    response = await client.post(PATH, json={"prompt": "12345"})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert response.json()["error"]["param"] == "prompt"


async def test_model_is_the_default_one_or_the_named_one(make_client: ClientFactory) -> None:
    generator, other = FakeGenerator(), FakeGenerator()
    client = await make_client(generator=generator, other_generator=other)
    for name in (None, "standard", MODEL):
        assert (await client.post(PATH, json={"prompt": "x", "model": name})).status_code == 200
    assert (await client.post(PATH, json={"prompt": "x", "model": OTHER_MODEL})).status_code == 200
    assert [request.model for request in generator.requests] == [MODEL] * 3
    assert [request.model for request in other.requests] == [OTHER_MODEL]


async def test_unknown_model_is_404(make_client: ClientFactory) -> None:
    client = await make_client()
    response = await client.post(PATH, json={"prompt": "x", "model": "nope"})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


async def test_seed_is_passed_on_and_otherwise_fresh(make_client: ClientFactory) -> None:
    generator = FakeGenerator()
    client = await make_client(generator=generator)
    for extra in ({"seed": 7}, {"seed": 7}, {}, {}):
        await client.post(PATH, json={"prompt": "x", **extra})
    seeds = [request.sampling.seed for request in generator.requests]
    assert seeds[:2] == [7, 7]
    assert seeds[2] != seeds[3]


async def test_full_text_begins_with_the_prompt(make_client: ClientFactory) -> None:
    client = await make_client(generator=FakeGenerator(" b"))
    body = (await client.post(PATH, json={"prompt": "a", "return_full_text": True})).json()
    assert body["generated_text"] == "a b"
    assert body["tokens_generated"] == 2


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", None])
async def test_json_content_type_or_none_is_taken(make_client: ClientFactory, content_type: str | None) -> None:
    client = await make_client()
    headers = {"Content-Type": content_type} if content_type else {}
    assert (await client.post(PATH, content=DOCUMENTED, headers=headers)).status_code == 200


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "json"])
async def test_other_content_type_is_400(make_client: ClientFactory, content_type: str) -> None:
    client = await make_client()
    response = await client.post(PATH, content=DOCUMENTED, headers={"Content-Type": content_type})
    assert response.status_code == 400
    assert content_type in response.json()["error"]["message"]


async def test_text_beyond_ascii_comes_back_whole(make_client: ClientFactory) -> None:
    generator = FakeGenerator(" é", "🤔\u2028")
    client = await make_client(generator=generator)
    body = (await client.post(PATH, json={"prompt": "Ünïcode 🤔"})).json()
    assert body["generated_text"] == " é🤔\u2028"
    assert text_of(generator.request.prompt_token_ids) == "Ünïcode 🤔"
