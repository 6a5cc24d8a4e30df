"""Streamed text completions of the TotalGPT API: framing, the order of chunks, echo, usage, errors."""

import json
import re
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest

from deployments.errors import ContextLengthExceeded, GenerationFailed, Overloaded
from deployments.types import (
    FinishReason,
    GenerateChunk,
    GenerateRequest,
    PositionLogprobs,
    TokenLogprob,
    Usage,
)
from serve_app.api import create_api
from tests.api.conftest import MODEL, ClientFactory, make_services
from tests.fakes import FakeGenerator, FakeTokenizer
from tests.live_server import RawClient, serve

PATH = "/v1/completions"
USAGE = {"include_usage": True}


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "Let", "stream": True, **fields}


def chunks_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The JSON of each event before the end mark."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events.pop() == ""
    assert events.pop() == "data: [DONE]"
    assert all(event.startswith("data: {") and "\n" not in event for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events]


def choices_by_index(chunks: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    by_index: dict[int, list[dict[str, Any]]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            by_index.setdefault(choice["index"], []).append(choice)
    return by_index


class ScriptedGenerator(FakeGenerator):
    """Streams exactly these chunks."""

    def __init__(self, *chunks: GenerateChunk) -> None:
        super().__init__()
        self._chunks = chunks

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        self.requests.append(request)
        for chunk in self._chunks:
            yield chunk


def position(text: str) -> PositionLogprobs:
    token = TokenLogprob(ord(text), -0.5, text)
    return PositionLogprobs(token, (token,))


async def test_stream_byte_for_byte(make_client: ClientFactory) -> None:
    client = await make_client(generator=FakeGenerator(" thé", "\nre 🌊"))
    response = await client.post(PATH, json=body(stream_options=USAGE))
    content = re.sub(rb'"id":"cmpl-[^"]+"', b'"id":"ID"', response.content)
    content = re.sub(rb'"created":\d+', b'"created":1', content)
    content = re.sub(rb'"system_fingerprint":"fp_\w+"', b'"system_fingerprint":"FP"', content)
    head = '{"id":"ID","object":"text_completion","created":1,"model":"test-org/test-model","system_fingerprint":"FP",'
    expected = (
        f'data: {head}"choices":[{{"index":0,"text":" thé","logprobs":null,"finish_reason":null,'
        '"stop_reason":null}],"usage":null}\n\n'
        f'data: {head}"choices":[{{"index":0,"text":"\\nre 🌊","logprobs":null,"finish_reason":null,'
        '"stop_reason":null}],"usage":null}\n\n'
        f'data: {head}"choices":[{{"index":0,"text":"","logprobs":null,"finish_reason":"stop",'
        '"stop_reason":null}],"usage":null}\n\n'
        f'data: {head}"choices":[],"usage":{{"prompt_tokens":3,"completion_tokens":9,"total_tokens":12,'
        '"prompt_tokens_details":{"cached_tokens":0}}}\n\n'
        "data: [DONE]\n\n"
    )
    assert content == expected.encode()


async def test_stream_has_one_identity(make_client: ClientFactory) -> None:
    client = await make_client()
    chunks = chunks_of(await client.post(PATH, json=body(n=2)))
    for key in ("id", "created", "model", "object", "system_fingerprint"):
        assert len({chunk[key] for chunk in chunks}) == 1
    assert all(len(chunk["choices"]) == 1 for chunk in chunks)
    assert all("usage" not in chunk for chunk in chunks)


async def test_stream_says_what_the_whole_answer_says(make_client: ClientFactory) -> None:
    generator = FakeGenerator(texts=[[" one", " and"], [" two"], [" three", ",", " four"]])
    client = await make_client(generator=generator)
    fields = {"prompt": ["A", "B"], "n": 3, "logprobs": 2, "echo": True, "return_token_ids": True}
    whole = await client.post(PATH, json={**body(**fields), "stream": False})
    chunks = chunks_of(await client.post(PATH, json=body(**fields, stream_options=USAGE)))
    by_index = choices_by_index(chunks)
    assert sorted(by_index) == [0, 1, 2, 3, 4, 5]
    for choice in whole.json()["choices"]:
        pieces = by_index[choice["index"]]
        assert "".join(piece["text"] for piece in pieces) == choice["text"]
        assert [token for piece in pieces for token in piece["token_ids"]] == choice["token_ids"]
        assert pieces[0]["prompt_token_ids"] == choice["prompt_token_ids"]
        for key, values in choice["logprobs"].items():
            assert [value for piece in pieces for value in piece["logprobs"][key]] == values
        assert [piece["finish_reason"] for piece in pieces if piece["finish_reason"]] == [choice["finish_reason"]]
        assert pieces[-1]["finish_reason"] == choice["finish_reason"]
    assert chunks[-1]["usage"] == whole.json()["usage"]


async def test_streams_of_several_prompts_interleave(make_client: ClientFactory) -> None:
    client = await make_client(generator=FakeGenerator("a", "b", "c"))
    chunks = chunks_of(await client.post(PATH, json=body(prompt=["A", "B"])))
    order = [chunk["choices"][0]["index"] for chunk in chunks]
    assert order[:4] == [0, 1, 0, 1]


async def test_prompt_is_echoed_once_for_each_choice(make_client: ClientFactory) -> None:
    client = await make_client(generator=FakeGenerator(" x", " y"))
    by_index = choices_by_index(chunks_of(await client.post(PATH, json=body(n=2, echo=True))))
    for pieces in by_index.values():
        assert [piece["text"] for piece in pieces] == ["Let x", " y", ""]


async def test_echo_waits_for_the_logprobs_of_the_prompt(make_client: ClientFactory) -> None:
    """They come with sequence 0, here after sequence 1 has begun."""
    generator = ScriptedGenerator(
        GenerateChunk(1, (98,), "b", logprobs=(position("b"),)),
        GenerateChunk(0, (97,), "a", logprobs=(position("a"),), prompt_logprobs=(None, position("e"), position("t"))),
        GenerateChunk(0, (), "", finish_reason=FinishReason.STOP),
        GenerateChunk(1, (), "", finish_reason=FinishReason.STOP, usage=Usage(3, 2)),
    )
    client = await make_client(generator=generator)
    by_index = choices_by_index(chunks_of(await client.post(PATH, json=body(n=2, echo=True, logprobs=1))))
    assert by_index[1][0]["text"] == "Letb"
    assert by_index[1][0]["logprobs"] == {
        "tokens": ["L", "e", "t", "b"],
        "token_logprobs": [None, -0.5, -0.5, -0.5],
        "top_logprobs": [None, {"e": -0.5}, {"t": -0.5}, {"b": -0.5}],
        "text_offset": [0, 1, 2, 3],
    }
    assert by_index[0][0]["text"] == "Leta"


async def test_chunks_that_say_nothing_are_not_sent(make_client: ClientFactory) -> None:
    generator = ScriptedGenerator(
        GenerateChunk(0, (1,), ""),
        GenerateChunk(0, (2,), "é"),
        GenerateChunk(0, (3,), ""),
        GenerateChunk(0, (), "", finish_reason=FinishReason.LENGTH, usage=Usage(3, 3)),
    )
    client = await make_client(generator=generator)
    by_index = choices_by_index(chunks_of(await client.post(PATH, json=body())))
    assert [(piece["text"], piece["finish_reason"]) for piece in by_index[0]] == [("é", None), ("", "length")]


async def test_logprobs_are_sent_even_without_text(make_client: ClientFactory) -> None:
    generator = ScriptedGenerator(
        GenerateChunk(0, (1,), "", logprobs=(position("x"),)),
        GenerateChunk(0, (2,), "y", logprobs=(position("y"),), finish_reason=FinishReason.STOP, usage=Usage(3, 2)),
    )
    client = await make_client(generator=generator)
    by_index = choices_by_index(chunks_of(await client.post(PATH, json=body(logprobs=0))))
    assert [piece["logprobs"]["text_offset"] for piece in by_index[0]] == [[0], [1]]


async def test_usage_can_run_along(make_client: ClientFactory) -> None:
    client = await make_client(generator=FakeGenerator("ab", "c"))
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = chunks_of(await client.post(PATH, json=body(stream_options=options)))
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [2, 3, 3, 3]
    assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {3}


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, {"continuous_usage_stats": True}])
async def test_usage_is_sent_only_where_asked_for(make_client: ClientFactory, options: Any) -> None:
    client = await make_client()
    chunks = chunks_of(await client.post(PATH, json=body(stream_options=options)))
    assert all(chunk["choices"] and "usage" not in chunk for chunk in chunks)


async def test_no_tokens_at_all_streams_the_prompt(make_client: ClientFactory) -> None:
    client = await make_client(generator=FakeGenerator("zz"))
    fields = {"max_tokens": 0, "echo": True, "logprobs": 0, "stream_options": USAGE}
    *chunks, last = chunks_of(await client.post(PATH, json=body(**fields)))
    pieces = choices_by_index(chunks)[0]
    assert "".join(piece["text"] for piece in pieces) == "Let"
    assert [token for piece in pieces for token in piece["logprobs"]["tokens"]] == ["L", "e", "t"]
    assert pieces[-1]["finish_reason"] == "length"
    assert last["usage"]["completion_tokens"] == 0


async def test_stop_reason_comes_with_the_finish_reason(make_client: ClientFactory) -> None:
    client = await make_client(generator=FakeGenerator("a", stop_reason="###"))
    pieces = choices_by_index(chunks_of(await client.post(PATH, json=body(stop="###"))))[0]
    assert [piece["stop_reason"] for piece in pieces] == [None, "###"]


@pytest.mark.parametrize(
    ("error", "status"), [(Overloaded("too many requests are waiting"), 503), (ContextLengthExceeded(9, 8), 400)]
)
async def test_errors_before_the_first_chunk_have_their_status(
    make_client: ClientFactory, error: Exception, status: int
) -> None:
    class Refusing(FakeGenerator):
        async def stream(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
            self.requests.append(request)
            raise error
            yield

    client = await make_client(generator=Refusing())
    response = await client.post(PATH, json=body())
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"


async def test_prompt_beyond_the_context_has_its_status(make_client: ClientFactory) -> None:
    client = await make_client(tokenizer=FakeTokenizer(context_length=3))
    response = await client.post(PATH, json=body())
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"


async def test_later_errors_are_an_event_before_the_end_mark(make_client: ClientFactory) -> None:
    client = await make_client(generator=FakeGenerator("a", "b", error=GenerationFailed("the model failed")))
    chunks = chunks_of(await client.post(PATH, json=body(stream_options=USAGE)))
    assert [chunk["choices"][0]["text"] for chunk in chunks[:-1]] == ["a", "b"]
    assert chunks[-1]["error"]["message"] == "the model failed"
    assert chunks[-1]["error"]["code"] == "generation_failed"


async def test_each_event_is_sent_at_once_and_a_gone_client_ends_the_work() -> None:
    generator = FakeGenerator("first", "never", hang=True)
    api = create_api(make_services(generator=generator))
    async with serve(api) as port:
        async with RawClient.connect(port) as client:
            await client.post(PATH, json.dumps(body()).encode())
            status, headers = await client.read_head()
            assert status == 200
            assert headers["content-type"].startswith("text/event-stream")
            chunk = await client.read_chunk()
            assert chunk.startswith(b"data: {")
            assert chunk.endswith(b"}\n\n")
            assert chunk.count(b"\n\n") == 1
            assert not generator.closed.is_set()
        await generator.closed.wait()
    assert generator.num_cancelled == 1


async def test_gone_client_of_a_whole_answer_ends_the_work_on_every_prompt() -> None:
    generator = FakeGenerator("first", hang=True)
    api = create_api(make_services(generator=generator))
    async with serve(api) as port:
        async with RawClient.connect(port) as client:
            request = {**body(prompt=["A", "B"]), "stream": False}
            await client.post(PATH, json.dumps(request).encode())
            await generator.started.wait()
        await generator.closed.wait()
    assert generator.num_cancelled == len(generator.requests) == 2
    assert generator.num_finished == 0
