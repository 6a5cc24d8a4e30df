"""Chat completions of the TotalGPT API: messages, answers, streams, log-probabilities, and what is refused."""

import json
import re
from typing import Any

import httpx
import pytest

from deployments.errors import GenerationFailed
from deployments.types import ChatMessage, ChatPrompt
from tests.api.conftest import MODEL, OTHER_MODEL, ClientFactory
from tests.fakes import FakeGenerator, FakeTokenizer, text_of, token_ids_of

PATH = "/v1/chat/completions"
USER = {"role": "user", "content": "Hi"}
TEMPLATED = "user: Hi\nassistant:"


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [USER], **fields}


def answer_of(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def chunks_of(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


async def test_whole_answer(make_client: ClientFactory) -> None:
    client = await make_client(generator=FakeGenerator("Hello", "!"))
    answer = answer_of(await client.post(PATH, json=body()))
    assert answer.pop("id").startswith("chatcmpl-")
    assert answer.pop("created") > 1_700_000_000
    assert answer.pop("system_fingerprint").startswith("fp_")
    assert answer == {
        "object": "chat.completion",
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello!", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
            }
        ],
        "usage": {
            "prompt_tokens": len(TEMPLATED),
            "completion_tokens": 6,
            "total_tokens": len(TEMPLATED) + 6,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
        "prompt_logprobs": None,
    }


@pytest.mark.parametrize(
    "path",
    [
        "/chat/completions",
        f"/engines/{MODEL}/chat/completions",
        f"/openai/deployments/{MODEL}/chat/completions",
    ],
)
async def test_aliases_of_the_route(make_client: ClientFactory, path: str) -> None:
    client = await make_client()
    answer = answer_of(await client.post(path, json=body()))
    assert answer["object"] == "chat.completion"
    assert answer["model"] == MODEL


async def test_model_of_the_path_wins(make_client: ClientFactory) -> None:
    client = await make_client()
    answer = answer_of(await client.post(f"/engines/{OTHER_MODEL}/chat/completions", json=body()))
    assert answer["choices"][0]["message"]["content"] == " from the other model"


async def test_messages_become_a_prompt(make_client: ClientFactory) -> None:
    tokenizer = FakeTokenizer()
    client = await make_client(tokenizer=tokenizer)
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "Two"}], "name": "Ann"},
        {"role": "assistant", "content": "", "tool_calls": None, "name": None},
        USER,
    ]
    answer_of(await client.post(PATH, json=body(messages=messages)))
    [request] = tokenizer.requests
    assert request.prompts == (
        ChatPrompt(
            (
                ChatMessage("system", "Be brief."),
                ChatMessage("user", "One\nTwo", "Ann"),
                ChatMessage("assistant", ""),
                ChatMessage("user", "Hi"),
            )
        ),
    )


@pytest.mark.parametrize(
    ("fields", "opens_turn", "continues"),
    [
        ({}, True, False),
        ({"add_generation_prompt": None, "continue_final_message": None}, True, False),
        ({"add_generation_prompt": False}, False, False),
        ({"continue_final_message": True}, False, True),
        ({"continue_final_message": True, "add_generation_prompt": False}, False, True),
    ],
)
async def test_how_the_template_ends(
    make_client: ClientFactory, fields: dict[str, Any], opens_turn: bool, continues: bool
) -> None:
    tokenizer = FakeTokenizer()
    client = await make_client(tokenizer=tokenizer)
    answer_of(await client.post(PATH, json=body(**fields)))
    [prompt] = tokenizer.requests[0].prompts
    assert isinstance(prompt, ChatPrompt)
    assert (prompt.add_generation_prompt, prompt.continue_final_message) == (opens_turn, continues)


@pytest.mark.parametrize(
    ("fields", "max_tokens"),
    [
        ({}, 100 - len(TEMPLATED)),
        ({"max_tokens": None}, 100 - len(TEMPLATED)),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 6),
        ({"max_tokens": 7000}, 100 - len(TEMPLATED)),
    ],
)
async def test_default_length_is_the_room_left(
    make_client: ClientFactory, fields: dict[str, Any], max_tokens: int
) -> None:
    generator = FakeGenerator()
    client = await make_client(generator=generator, tokenizer=FakeTokenizer(context_length=100))
    answer_of(await client.post(PATH, json=body(**fields)))
    assert generator.request.sampling.max_tokens == max_tokens
    assert text_of(generator.request.prompt_token_ids) == TEMPLATED


async def test_sampling_is_that_of_completions(make_client: ClientFactory) -> None:
    generator = FakeGenerator()
    client = await make_client(generator=generator)
    fields = {
        "temperature": 0.5,
        "top_k": 40,
        "repetition_penalty": 1.2,
        "stop": ["x"],
        "seed": 9,
        "logit_bias": {"5": 200},
        "bad_words": ["no"],
    }
    answer_of(await client.post(PATH, json=body(**fields)))
    sampling = generator.request.sampling
    assert (sampling.temperature, sampling.top_k, sampling.repetition_penalty) == (0.5, 40, 1.2)
    assert (sampling.stop, sampling.seed, sampling.logit_bias) == (("x",), 9, ((5, 100.0),))
    assert sampling.bad_words_token_ids == (token_ids_of("no"), token_ids_of(" no"))


async def test_several_choices(make_client: ClientFactory) -> None:
    client = await make_client(generator=FakeGenerator(texts=[["one"], ["two"], ["three"]]))
    choices = answer_of(await client.post(PATH, json=body(n=3)))["choices"]
    assert [(choice["index"], choice["message"]["content"]) for choice in choices] == [
        (0, "one"),
        (1, "two"),
        (2, "three"),
    ]


async def test_best_of_returns_the_likeliest(make_client: ClientFactory) -> None:
    client = await make_client(generator=FakeGenerator(texts=[["aaa"], ["bbb"]]))
    [choice] = answer_of(await client.post(PATH, json=body(best_of=2)))["choices"]
    assert choice["message"]["content"] == "bbb"


async def test_logprobs(make_client: ClientFactory) -> None:
    client = await make_client(generator=FakeGenerator("é"))
    [choice] = answer_of(await client.post(PATH, json=body(logprobs=True, top_logprobs=2)))["choices"]
    assert choice["logprobs"] == {
        "content": [
            {
                "token": "é",
                "logprob": -1.0,
                "bytes": [195, 169],
                "top_logprobs": [
                    {"token": "é", "logprob": -1.0, "bytes": [195, 169]},
                    {"token": "ê", "logprob": -2.0, "bytes": [195, 170]},
                ],
            }
        ],
        "refusal": None,
    }


async def test_logprobs_without_alternatives(make_client: ClientFactory) -> None:
    client = await make_client(generator=FakeGenerator("ab"))
    [choice] = answer_of(await client.post(PATH, json=body(logprobs=True)))["choices"]
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == ["a", "b"]
    assert all(entry["top_logprobs"] == [] for entry in choice["logprobs"]["content"])


async def test_prompt_logprobs_and_token_ids(make_client: ClientFactory) -> None:
    client = await make_client(generator=FakeGenerator("a"))
    answer = answer_of(await client.post(PATH, json=body(prompt_logprobs=0, return_token_ids=True)))
    assert len(answer["prompt_logprobs"]) == len(TEMPLATED)
    assert answer["prompt_logprobs"][0] is None
    assert answer["prompt_logprobs"][1] == {"115": {"logprob": -1.0, "rank": None, "decoded_token": "s"}}
    assert answer["prompt_token_ids"] == list(token_ids_of(TEMPLATED))
    assert answer["choices"][0]["token_ids"] == [97]


@pytest.mark.parametrize("stream", [False, True])
async def test_echo_repeats_the_continued_message(make_client: ClientFactory, stream: bool) -> None:
    client = await make_client(generator=FakeGenerator(" world"))
    messages = [USER, {"role": "assistant", "content": "Hello"}]
    fields = {"messages": messages, "echo": True, "continue_final_message": True, "stream": stream}
    response = await client.post(PATH, json=body(**fields))
    if stream:
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks_of(response)]
        assert "".join(delta.get("content", "") for delta in deltas) == "Hello world"
    else:
        assert answer_of(response)["choices"][0]["message"]["content"] == "Hello world"


async def test_stream_byte_for_byte(make_client: ClientFactory) -> None:
    client = await make_client(generator=FakeGenerator("Hé", "llo"))
    response = await client.post(PATH, json=body(stream=True, stream_options={"include_usage": True}))
    assert response.headers["content-type"].startswith("text/event-stream")
    content = re.sub(rb'"id":"chatcmpl-[^"]+"', b'"id":"ID"', response.content)
    content = re.sub(rb'"created":\d+', b'"created":1', content)
    content = re.sub(rb'"system_fingerprint":"fp_\w+"', b'"system_fingerprint":"FP"', content)
    head = (
        'data: {"id":"ID","object":"chat.completion.chunk","created":1,"model":"test-org/test-model",'
        '"system_fingerprint":"FP","choices":['
    )
    expected = "".join(
        f'{head}{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{reason},"stop_reason":null}}],'
        '"usage":null}\n\n'
        for delta, reason in (
            ('{"role":"assistant","content":""}', "null"),
            ('{"content":"Hé"}', "null"),
            ('{"content":"llo"}', "null"),
            ("{}", '"stop"'),
        )
    )
    total = len(TEMPLATED) + 5
    expected += (
        f'{head}],"usage":{{"prompt_tokens":{len(TEMPLATED)},"completion_tokens":5,"total_tokens":{total},'
        '"prompt_tokens_details":{"cached_tokens":0}}}\n\ndata: [DONE]\n\n'
    )
    assert content == expected.encode()


async def test_stream_says_what_the_whole_answer_says(make_client: ClientFactory) -> None:
    generator = FakeGenerator(texts=[["one", " and"], ["two"]])
    client = await make_client(generator=generator)
    fields = {"n": 2, "logprobs": True, "top_logprobs": 1, "return_token_ids": True}
    whole = answer_of(await client.post(PATH, json=body(**fields)))
    chunks = chunks_of(await client.post(PATH, json=body(stream=True, **fields)))
    assert all("usage" not in chunk for chunk in chunks)
    for choice in whole["choices"]:
        pieces = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert pieces[0]["delta"] == {"role": "assistant", "content": ""}
        assert all("role" not in piece["delta"] for piece in pieces[1:])
        text = "".join(piece["delta"].get("content", "") for piece in pieces)
        assert text == choice["message"]["content"]
        entries = [entry for piece in pieces if piece["logprobs"] for entry in piece["logprobs"]["content"]]
        assert entries == choice["logprobs"]["content"]
        assert [piece["finish_reason"] for piece in pieces if piece["finish_reason"]] == [choice["finish_reason"]]
        assert [token for piece in pieces for token in piece.get("token_ids", ())] == choice["token_ids"]


async def test_usage_can_run_along(make_client: ClientFactory) -> None:
    client = await make_client(generator=FakeGenerator("ab", "c"))
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = chunks_of(await client.post(PATH, json=body(stream=True, stream_options=options)))
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [0, 2, 3, 3, 3]


async def test_later_errors_are_an_event_before_the_end_mark(make_client: ClientFactory) -> None:
    client = await make_client(generator=FakeGenerator("a", "b", error=GenerationFailed("the model failed")))
    chunks = chunks_of(await client.post(PATH, json=body(stream=True)))
    assert chunks[-1]["error"]["code"] == "generation_failed"


@pytest.mark.parametrize("stream", [False, True])
async def test_messages_beyond_the_context_are_refused(make_client: ClientFactory, stream: bool) -> None:
    client = await make_client(tokenizer=FakeTokenizer(context_length=5))
    response = await client.post(PATH, json=body(stream=stream))
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert response.json()["error"]["param"] == "messages"


async def test_unknown_model(make_client: ClientFactory) -> None:
    client = await make_client()
    assert (await client.post(PATH, json=body(model="chat"))).status_code == 404
    assert (await client.post("/engines/nobody/chat/completions", json=body())).status_code == 404


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("messages", {"messages": None}),
        ("messages", {"messages": []}),
        ("messages", {"messages": "Hi"}),
        ("messages[0]", {"messages": ["Hi"]}),
        ("messages[0].role", {"messages": [{"content": "Hi"}]}),
        ("messages[0].role", {"messages": [{"role": "tool", "content": "Hi"}]}),
        ("messages[0].role", {"messages": [{"role": "wizard", "content": "Hi"}]}),
        ("messages[0].content", {"messages": [{"role": "user"}]}),
        ("messages[0].content", {"messages": [{"role": "user", "content": None}]}),
        ("messages[0].content", {"messages": [{"role": "user", "content": 5}]}),
        ("messages[0].content", {"messages": [{"role": "user", "content": []}]}),
        ("messages[1].content[0].type", {"messages": [USER, {"role": "user", "content": [{"type": "image_url"}]}]}),
        ("messages[0].content[0].text", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
        ("messages[0].name", {"messages": [{**USER, "name": 5}]}),
        ("messages[0].tool_calls", {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}),
        ("messages[0].function_call", {"messages": [{"role": "assistant", "content": "", "function_call": {}}]}),
        ("max_tokens", {"max_tokens": 0}),
        ("max_completion_tokens", {"max_completion_tokens": 0}),
        ("max_completion_tokens", {"max_completion_tokens": True}),
        ("min_tokens", {"max_completion_tokens": 5, "max_tokens": 9, "min_tokens": 6}),
        ("logprobs", {"logprobs": 5}),
        ("top_logprobs", {"top_logprobs": 1}),
        ("top_logprobs", {"logprobs": True, "top_logprobs": 21}),
        ("top_logprobs", {"logprobs": True, "top_logprobs": True}),
        ("continue_final_message", {"continue_final_message": True, "add_generation_prompt": True}),
        ("add_special_tokens", {"add_special_tokens": True}),
        ("stream_options", {"stream_options": {"include_usage": True}}),
        ("best_of", {"best_of": 2, "stream": True}),
        ("prompt_logprobs", {"prompt_logprobs": 1, "stream": True}),
    ],
)
async def test_refused_by_name(make_client: ClientFactory, param: str, fields: dict[str, Any]) -> None:
    client = await make_client()
    response = await client.post(PATH, json=body(**fields))
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
