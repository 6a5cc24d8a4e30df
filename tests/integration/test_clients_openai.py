"""The `openai` Python client, unmodified, against a running service."""

import asyncio
import math
from collections.abc import AsyncIterator, Iterator

import httpx
import openai
import pytest
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletionMessageParam

from tests.integration.service import MODEL, Service

pytestmark = pytest.mark.timeout(400)

PROMPT = "The capital of France is"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello."}]
ABSENT_MODEL = "no-such/model"


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.key, max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture
async def async_client(service: Service) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{service.url}/v1", api_key=service.key, max_retries=0, timeout=120
    ) as client:
        yield client


def token_ids(service: Service, text: str) -> list[int]:
    body = {"model": MODEL, "prompt": text}
    answer = httpx.post(f"{service.url}/tokenize", json=body, headers=service.headers, timeout=120)
    return list(answer.raise_for_status().json()["tokens"])


def counts(usage: CompletionUsage | None) -> tuple[int, int, int]:
    """Without the number of cached tokens, which differs from one time to the next."""
    assert usage is not None
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens


def test_models_are_listed_and_retrieved_by_id_and_by_alias(client: openai.OpenAI) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert {MODEL, "standard"} <= listed.keys()
    for name in (MODEL, "standard"):
        assert client.models.retrieve(name) == listed[name]
        assert listed[name].object == "model"


def test_a_completion_has_every_field_of_the_clients_type(client: openai.OpenAI, service: Service) -> None:
    answer = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=4, temperature=0)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.model == MODEL
    assert answer.system_fingerprint
    [choice] = answer.choices
    assert choice.text.startswith(" Paris")
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert answer.usage is not None
    num_prompt_tokens = len(token_ids(service, PROMPT))
    assert answer.usage.prompt_tokens == num_prompt_tokens
    assert answer.usage.completion_tokens == 4
    assert answer.usage.total_tokens == num_prompt_tokens + 4


def test_token_ids_mean_the_same_as_their_text(client: openai.OpenAI, service: Service) -> None:
    ids = token_ids(service, PROMPT)
    texts = [
        client.completions.create(model=MODEL, prompt=prompt, max_tokens=6, temperature=0).choices[0].text
        for prompt in (PROMPT, ids, [PROMPT], [ids])
    ]
    assert texts == [texts[0]] * 4


def test_choices_of_several_prompts_come_prompt_by_prompt(client: openai.OpenAI) -> None:
    prompts = [PROMPT, "Two plus two is", "def add(a, b):"]
    together = client.completions.create(model=MODEL, prompt=prompts, n=2, max_tokens=3, temperature=0, echo=True)
    assert [choice.index for choice in together.choices] == list(range(6))
    alone = [
        client.completions.create(model=MODEL, prompt=prompt, max_tokens=3, temperature=0).choices[0].text
        for prompt in prompts
    ]
    expected = [prompt + text for prompt, text in zip(prompts, alone, strict=True) for _ in range(2)]
    assert [choice.text for choice in together.choices] == expected
    assert together.usage is not None
    assert together.usage.completion_tokens == 18


def test_a_seed_repeats_all_of_n_different_samples(client: openai.OpenAI) -> None:
    def sample(seed: int) -> list[str]:
        answer = client.completions.create(
            model=MODEL, prompt="Once upon a time", n=3, seed=seed, max_tokens=12, temperature=1.2
        )
        return [choice.text for choice in answer.choices]

    first = sample(1)
    assert sample(1) == first
    assert len(set(first)) == 3
    assert sample(2) != first


@pytest.mark.parametrize("stop", [" Paris", ["never", "aris"]])
def test_a_stop_string_ends_the_text_before_itself(client: openai.OpenAI, stop: str | list[str]) -> None:
    answer = client.completions.create(model=MODEL, prompt=PROMPT, stop=stop, max_tokens=8, temperature=0)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].text == (" P" if isinstance(stop, list) else "")


def test_logprobs_are_aligned_with_the_echoed_text(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=PROMPT, logprobs=2, echo=True, max_tokens=3, temperature=0)
    [choice] = answer.choices
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    assert "".join(logprobs.tokens) == choice.text
    offsets = [len("".join(logprobs.tokens[:index])) for index in range(len(logprobs.tokens))]
    assert logprobs.text_offset == offsets
    assert logprobs.token_logprobs[0] is None
    for token, value, top in zip(
        logprobs.tokens[1:], logprobs.token_logprobs[1:], logprobs.top_logprobs[1:], strict=True
    ):
        assert 2 <= len(top) <= 3
        assert top[token] == value <= 0
    for value, top in list(zip(logprobs.token_logprobs, logprobs.top_logprobs, strict=True))[-3:]:
        assert value == max(top.values())  # of the greedy tokens


def test_echo_without_new_tokens_scores_the_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=PROMPT, logprobs=0, echo=True, max_tokens=0)
    assert answer.choices[0].text == PROMPT
    assert answer.choices[0].logprobs is not None
    assert "".join(answer.choices[0].logprobs.tokens or []) == PROMPT
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0


def test_parameters_that_openai_does_not_have_are_sent_in_the_extra_body(client: openai.OpenAI) -> None:
    sampled = client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=4, temperature=1.5, extra_body={"top_k": 1, "return_token_ids": True}
    )
    greedy = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=4, temperature=0)
    assert sampled.choices[0].text == greedy.choices[0].text
    assert len(sampled.choices[0].token_ids) == 4  # type: ignore[attr-defined]


def test_a_stream_gives_the_same_text_and_its_usage_last(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt=PROMPT, n=2, seed=3, max_tokens=8)
    stream = client.completions.create(
        model=MODEL, prompt=PROMPT, n=2, seed=3, max_tokens=8, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = stream
    texts = ["", ""]
    finish_reasons: list[list[str]] = [[], []]
    for chunk in chunks:
        assert chunk.usage is None
        [choice] = chunk.choices
        texts[choice.index] += choice.text
        if choice.finish_reason is not None:
            finish_reasons[choice.index].append(choice.finish_reason)
    assert texts == [choice.text for choice in whole.choices]
    assert finish_reasons == [[choice.finish_reason] for choice in whole.choices]
    assert last.choices == []
    assert counts(last.usage) == counts(whole.usage)
    assert len({(chunk.id, chunk.created) for chunk in [*chunks, last]}) == 1


def test_a_stream_without_stream_options_has_no_usage(client: openai.OpenAI) -> None:
    chunks = list(client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=3, stream=True))
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in chunks)


def test_a_stream_echoes_prompt_and_logprobs(client: openai.OpenAI) -> None:
    options = {"model": MODEL, "prompt": PROMPT, "logprobs": 1, "echo": True, "max_tokens": 4, "temperature": 0}
    whole = client.completions.create(**options).choices[0]  # type: ignore[call-overload]
    choices = [chunk.choices[0] for chunk in client.completions.create(**options, stream=True)]  # type: ignore[call-overload]
    assert "".join(choice.text for choice in choices) == whole.text
    assert [token for choice in choices for token in choice.logprobs.tokens] == whole.logprobs.tokens
    assert [offset for choice in choices for offset in choice.logprobs.text_offset] == whole.logprobs.text_offset


def test_after_a_stream_is_closed_early_the_next_request_is_answered(client: openai.OpenAI) -> None:
    for _ in range(8):
        with client.completions.create(
            model=MODEL, prompt=PROMPT, n=8, max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
        ) as stream:
            assert next(iter(stream)).choices[0].text
    # Uncancelled, these 64 sequences of 4000 tokens would occupy the engine for far longer than this.
    answer = client.with_options(timeout=30).completions.create(model=MODEL, prompt=PROMPT, max_tokens=2)
    assert answer.choices[0].finish_reason == "length"


def test_a_chat_completion_has_every_field_of_the_clients_type(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_completion_tokens=8, temperature=0, logprobs=True, top_logprobs=2
    )
    assert answer.object == "chat.completion"
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert "".join(token.token for token in choice.logprobs.content) == choice.message.content
    for token in choice.logprobs.content:
        assert token.bytes == list(token.token.encode())
        assert token.top_logprobs[0].token == token.token
        assert len(token.top_logprobs) == 2
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1 + 1e-6
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8


def test_a_chat_stream_gives_the_same_text_and_its_usage_last(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=MESSAGES, seed=5, max_tokens=12)
    stream = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, seed=5, max_tokens=12, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = stream
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == [
        whole.choices[0].finish_reason
    ]
    assert last.choices == []
    assert counts(last.usage) == counts(whole.usage)


def test_the_chat_stream_helper_accumulates_the_answer(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=MESSAGES, seed=5, max_tokens=12) as stream:
        kinds = {event.type for event in stream}
        # Its last method refuses an answer that was cut at its length.
        final = stream.current_completion_snapshot
    assert {"chunk", "content.delta", "content.done"} <= kinds
    whole = client.chat.completions.create(model=MODEL, messages=MESSAGES, seed=5, max_tokens=12)
    assert final.choices[0].message.content == whole.choices[0].message.content


async def test_the_asynchronous_client_gets_the_same(async_client: openai.AsyncOpenAI, client: openai.OpenAI) -> None:
    expected = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=6, temperature=0).choices[0].text

    async def whole() -> str:
        answer = await async_client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=6, temperature=0)
        return answer.choices[0].text

    async def streamed() -> str:
        stream = await async_client.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=6, temperature=0, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def chat() -> str:
        stream = await async_client.chat.completions.create(
            model=MODEL, messages=MESSAGES, max_tokens=6, temperature=0, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    *texts, said = await asyncio.gather(*[whole() for _ in range(4)], *[streamed() for _ in range(4)], chat())
    assert texts == [expected] * 8
    assert said
    assert MODEL in [model.id async for model in async_client.models.list()]


@pytest.mark.parametrize("key", ["sk-wrong", "tt_0000"])
def test_a_wrong_key_is_an_authentication_error(service: Service, key: str) -> None:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key=key, max_retries=0) as client:
        for ask in (
            client.models.list,
            lambda: client.completions.create(model=MODEL, prompt=PROMPT),
            lambda: client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True),
        ):
            with pytest.raises(openai.AuthenticationError) as caught:
                ask()
            assert caught.value.status_code == 401
            assert key not in caught.value.message


def test_an_unknown_model_is_a_not_found_error(client: openai.OpenAI) -> None:
    for ask in (
        lambda: client.models.retrieve(ABSENT_MODEL),
        lambda: client.completions.create(model=ABSENT_MODEL, prompt=PROMPT),
        lambda: client.chat.completions.create(model=ABSENT_MODEL, messages=MESSAGES),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            ask()
        assert caught.value.code == "model_not_found"
        assert ABSENT_MODEL in caught.value.message


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("temperature", {"temperature": 3}),
        ("n", {"n": True}),
        ("max_tokens", {"max_tokens": -1}),
        ("logprobs", {"logprobs": 100_000}),
        ("prompt", {"prompt": ""}),
        ("prompt", {"prompt": [10**7]}),
        ("prompt", {"prompt": "word " * 9000}),
        ("stop[1]", {"stop": ["a", ""]}),
    ],
)
def test_a_bad_value_is_a_bad_request_error_that_names_the_field(
    client: openai.OpenAI, param: str, fields: dict[str, object], stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"model": MODEL, "prompt": PROMPT, "stream": stream} | fields)  # type: ignore[call-overload]
    assert caught.value.status_code == 400
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_stream_options_without_a_stream_are_a_bad_request_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt=PROMPT, stream_options={"include_usage": True})
    assert caught.value.param == "stream_options"


def test_a_bad_chat_message_is_a_bad_request_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=[])
    assert caught.value.param == "messages"


def test_every_answer_and_every_error_has_a_request_id(client: openai.OpenAI) -> None:
    answers = [client.completions.with_raw_response.create(model=MODEL, prompt=PROMPT, max_tokens=1) for _ in range(2)]
    request_ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(request_ids)) == 2
    for answer, request_id in zip(answers, request_ids, strict=True):
        assert "," not in request_id  # the header came once
        assert answer.request_id == request_id
        assert answer.parse().choices[0].text is not None
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model=ABSENT_MODEL, prompt=PROMPT)
    assert caught.value.request_id
    with client.completions.with_streaming_response.create(
        model=MODEL, prompt=PROMPT, max_tokens=1, stream=True
    ) as streamed:
        assert streamed.headers["x-request-id"]
        assert streamed.headers["content-type"].startswith("text/event-stream")
        assert list(streamed.iter_lines())[-2:] == ["data: [DONE]", ""]
