"""Every parameter of the TotalGPT API: what is taken, what it becomes, and what is refused by name."""

import json
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from dataclasses import fields as fields_of
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from deployments.errors import InvalidParameter
from deployments.types import PositionLogprobs, SamplingParams, TextPrompt, TokenLogprob, TokenPrompt
from serve_app.api import create_api
from serve_app.config import TotalGPTConfig
from serve_app.dialects.totalgpt import sse
from serve_app.dialects.totalgpt.completions import CompletionFields
from serve_app.dialects.totalgpt.logprobs import completion_logprobs, more_logprobs
from serve_app.dialects.totalgpt.prompts import to_prompts
from serve_app.dialects.totalgpt.sampling import check_sampling, to_logit_bias, to_sampling_params
from serve_app.http.json_text import parse_object
from serve_app.http.wire_model import parse
from tests.api.conftest import MODEL, ClientFactory, make_services
from tests.fakes import KEY, FakeGenerator, token_ids_of

PATH = "/v1/completions"
CHAT_PATH = "/v1/chat/completions"
MAX_INT32 = 2**31 - 1


@dataclass
class Service:
    """One application for all tests of this module, and what its generator was asked for."""

    generator: FakeGenerator
    client: httpx.AsyncClient

    async def post(self, path: str, request: dict[str, Any] | bytes) -> httpx.Response:
        content = request if isinstance(request, bytes) else json.dumps(request).encode()
        return await self.client.post(path, content=content, headers={"content-type": "application/json"})


@pytest.fixture(scope="module")
def application() -> tuple[FastAPI, FakeGenerator]:
    generator = FakeGenerator()
    return create_api(make_services(generator=generator)), generator


@pytest.fixture
async def service(application: tuple[FastAPI, FakeGenerator]) -> AsyncIterator[Service]:
    api, generator = application
    generator.requests.clear()
    transport, headers = httpx.ASGITransport(api), {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        yield Service(generator, client)


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "Let", **fields}


# What a field becomes in the canonical parameters, where it has the same name there.
TAKEN = [
    ("presence_penalty", -2, -2.0),
    ("presence_penalty", 2.0, 2.0),
    ("presence_penalty", None, 0.0),
    ("frequency_penalty", -2, -2.0),
    ("frequency_penalty", 0.5, 0.5),
    ("frequency_penalty", None, 0.0),
    ("repetition_penalty", 0.5, 0.5),
    ("repetition_penalty", 3, 3.0),
    ("repetition_penalty", None, 1.0),
    ("temperature", 0, 0.0),
    ("temperature", 9e-6, 0.0),
    ("temperature", 1e-5, 0.01),
    ("temperature", 0.005, 0.01),
    ("temperature", 0.01, 0.01),
    ("temperature", 2, 2.0),
    ("temperature", None, 1.0),
    ("top_p", 1e-9, 1e-9),
    ("top_p", 1, 1.0),
    ("top_p", None, 1.0),
    ("top_k", -1, 0),
    ("top_k", 0, 0),
    ("top_k", 40, 40),
    ("top_k", None, 0),
    ("min_p", 0, 0.0),
    ("min_p", 1, 1.0),
    ("min_p", None, 0.0),
    ("seed", 0, 0),
    ("seed", 2**63 - 1, 2**63 - 1),
    ("seed", -(2**63), -(2**63)),
    ("seed", -2, -2),
    ("stop", "end", ("end",)),
    ("stop", ["a", "bc"], ("a", "bc")),
    ("stop", [], ()),
    ("stop", None, ()),
    ("stop_token_ids", [0, 5], (0, 5)),
    ("stop_token_ids", None, ()),
    ("include_stop_str_in_output", True, True),
    ("include_stop_str_in_output", None, False),
    ("bad_words", None, ()),
    ("min_tokens", 16, 16),
    ("min_tokens", None, 0),
    ("max_tokens", 1, 1),
    ("max_tokens", 7000, 7000),
    ("max_tokens", None, 16),
    ("detokenize", False, False),
    ("detokenize", None, True),
    ("ignore_eos", True, True),
    ("ignore_eos", None, False),
    ("skip_special_tokens", False, False),
    ("skip_special_tokens", None, True),
    ("logprobs", 0, 0),
    ("logprobs", 20, 20),
    ("logprobs", None, None),
    ("prompt_logprobs", 0, 0),
    ("prompt_logprobs", 20, 20),
    ("prompt_logprobs", None, None),
    ("logit_bias", {"5": 1, "6": -100.0}, ((5, 1.0), (6, -100.0))),
    ("logit_bias", {"5": 1e9, "6": -1e9}, ((5, 100.0), (6, -100.0))),
    ("logit_bias", {}, ()),
    ("logit_bias", None, ()),
    ("allowed_token_ids", [7], (7,)),
    ("allowed_token_ids", None, None),
]


@pytest.mark.parametrize(("name", "value", "canonical"), TAKEN)
async def test_taken(service: Service, name: str, value: Any, canonical: Any) -> None:
    response = await service.post(PATH, body(**{name: value}))
    assert response.status_code == 200, response.text
    field = "bad_words_token_ids" if name == "bad_words" else name
    assert getattr(service.generator.request.sampling, field) == canonical


async def test_every_canonical_parameter_can_be_reached() -> None:
    reached = {name for name, _, _ in TAKEN if name != "bad_words"} | {"bad_words_token_ids"}
    # The bound on characters belongs to another API.
    assert {field.name for field in fields_of(SamplingParams)} - reached == {"max_characters"}


async def test_defaults_are_those_of_the_canonical_parameters(service: Service) -> None:
    await service.post(PATH, body(seed=0))
    assert service.generator.request.sampling == SamplingParams(max_tokens=16)
    assert service.generator.request.num_sequences == 1


@pytest.mark.parametrize("seed", [None, -1])
async def test_without_a_seed_each_request_gets_its_own(service: Service, seed: Any) -> None:
    for _ in range(2):
        await service.post(PATH, body(seed=seed))
    first, second = service.generator.requests
    assert first.sampling.seed != second.sampling.seed
    assert first.sampling.seed != -1


async def test_bad_words_are_spelled_by_the_tokenizer(service: Service) -> None:
    await service.post(PATH, body(bad_words=["no"]))
    assert service.generator.request.sampling.bad_words_token_ids == (token_ids_of("no"), token_ids_of(" no"))


async def test_greedy_requests_lose_their_filters(service: Service) -> None:
    await service.post(PATH, body(temperature=0, top_p=0.5, top_k=3, min_p=0.1, n=2))
    sampling = service.generator.request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.0, 1.0, 0, 0.0)
    assert service.generator.request.num_sequences == 2


async def test_every_field_may_be_null(service: Service) -> None:
    optional = {name: None for name in CompletionFields.model_fields if name not in ("model", "prompt", "seed")}
    response = await service.post(PATH, body(seed=0, **optional))
    assert response.status_code == 200, response.text
    assert service.generator.request.sampling == SamplingParams(max_tokens=16)


INTEGERS: dict[str, list[Any]] = {
    "n": [0, -1, 129],
    "best_of": [0, -1, 129],
    "top_k": [-2, 2**31],
    "seed": [2**63, 2**64 - 1],
    "min_tokens": [-1, 17],
    "max_tokens": [0, -1, 2**31],
    "logprobs": [-2, 21],
    "prompt_logprobs": [-2, 21],
    "truncate_prompt_tokens": [-2, 0, 2**31],
}
NUMBERS: dict[str, list[Any]] = {
    "presence_penalty": [-2.01, 2.01],
    "frequency_penalty": [-2.01, 2.01],
    "repetition_penalty": [0, -1],
    "temperature": [-0.1, 2.01],
    "top_p": [0, -0.1, 1.01],
    "min_p": [-0.1, 1.01],
}
BOOLEANS = [
    "include_stop_str_in_output",
    "ignore_eos",
    "detokenize",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "echo",
    "add_special_tokens",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "stream",
]
REFUSED = [
    *((name, value) for name, values in INTEGERS.items() for value in [*values, True, "1", 1.5, [1], {}]),
    *((name, value) for name, values in NUMBERS.items() for value in [*values, True, "1", [1], {}]),
    *((name, value) for name in BOOLEANS for value in [0, 1, "true", []]),
    *(("stop", value) for value in ["", [""], ["a", ""], 5, [5], True, {}]),
    *(("stop_token_ids", value) for value in [5, "5", [True], [-1], ["5"], [2**31]]),
    *(("bad_words", value) for value in ["word", [""], [5], {}]),
    *(("logit_bias", value) for value in [[], 5, {"a": 1}, {"-1": 1}, {"1.5": 1}, {"5": "1"}, {"5": True}]),
    *(("logit_bias", value) for value in [{"": 1}, {" 5": 1}, {"5_0": 1}, {"\u0665": 1}, {"9999999999": 1}]),
    *(("allowed_token_ids", value) for value in [[], 5, [True], [-1], ["5"]]),
    *(("stream_options", value) for value in [5, [], True, {"include_usage": "yes"}, {"include_usage": True}]),
    ("stream_options", {"include_usage": None}),
    *(("model", value) for value in [5, [], {}, True]),
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
async def test_refused_by_name(service: Service, name: str, value: Any) -> None:
    response = await service.post(PATH, body(**{name: value}))
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"].partition("[")[0].partition(".")[0] == name
    assert name in error["message"]
    assert error["extensions"] == {"code": "BAD_USER_INPUT"}
    assert service.generator.requests == []


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("best_of", {"n": 3, "best_of": 2}),
        ("best_of", {"best_of": 2, "stream": True}),
        ("max_tokens", {"max_tokens": 0}),
        ("min_tokens", {"min_tokens": 5, "max_tokens": 4}),
        ("detokenize", {"detokenize": False, "stop": "x"}),
        ("spaces_between_special_tokens", {"spaces_between_special_tokens": False, "skip_special_tokens": False}),
        ("prompt_logprobs", {"prompt_logprobs": 1, "stream": True}),
        ("logprobs", {"logprobs": "5"}),
        ("model", {"model": None}),
        ("prompt", {"prompt": None}),
    ],
)
async def test_refused_combinations(service: Service, name: str, fields: dict[str, Any]) -> None:
    response = await service.post(PATH, body(**fields))
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == name


@pytest.mark.parametrize(
    "fields",
    [
        {"best_of": 1, "stream": True},
        {"n": 2, "best_of": 2, "stream": True},
        {"spaces_between_special_tokens": False},
        {"detokenize": False, "stop": []},
        {"stream_options": {}},
        {"n": 128},
    ],
)
async def test_taken_combinations(service: Service, fields: dict[str, Any]) -> None:
    response = await service.post(PATH, body(**fields))
    assert response.status_code == 200, response.text


async def test_limits_of_the_configuration(make_client: ClientFactory) -> None:
    client = await make_client(totalgpt=TotalGPTConfig(max_n=2, max_prompts=2, max_logprobs=5))
    for fields, name in (
        ({"n": 3}, "n"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"prompt": ["a", "b", "c"]}, "prompt"),
    ):
        response = await client.post(PATH, json=body(**fields))
        assert response.status_code == 400
        assert response.json()["error"]["param"] == name
    response = await client.post(PATH, json=body(prompt=["a", "b"], n=2, logprobs=5))
    assert response.status_code == 200


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        [],
        [""],
        ["a", ""],
        [[]],
        [[1], []],
        ["a", 1],
        [1, "a"],
        [1, [1]],
        [[1], 1],
        [["a"]],
        [[[1]]],
        [True],
        [1, True],
        [[1, False]],
        [-1],
        [1.5],
        [0x110001],
        [2**31],
        5,
        True,
        {},
        {"text": "a"},
        [None],
        [{}],
    ],
)
async def test_prompts_that_are_none(service: Service, prompt: Any) -> None:
    response = await service.post(PATH, body(prompt=prompt))
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"].partition("[")[0] == "prompt"


UNSUPPORTED = [
    ("suffix", "end"),
    ("use_beam_search", True),
    ("length_penalty", 2),
    ("prompt_embeds", "AAAA"),
    ("logits_processors", ["x"]),
    ("response_format", {"type": "json_object"}),
    ("structured_outputs", {"choice": ["a"]}),
    ("guided_json", {"type": "object"}),
    ("guided_json", {}),
    ("guided_regex", "a+"),
    ("guided_choice", ["a"]),
    ("guided_grammar", "x"),
    ("guided_decoding_backend", "x"),
]
CHAT_UNSUPPORTED = [
    ("tools", [{"type": "function"}]),
    ("functions", [{}]),
    ("tool_choice", "required"),
    ("function_call", {"name": "f"}),
    ("modalities", ["text", "audio"]),
    ("audio", {"voice": "x"}),
    ("chat_template", "{{ x }}"),
    ("documents", [{}]),
]


@pytest.mark.parametrize(("name", "value"), UNSUPPORTED)
async def test_what_cannot_be_honoured_is_refused(service: Service, name: str, value: Any) -> None:
    for path in (PATH, CHAT_PATH):
        response = await service.post(path, body(messages=[{"role": "user", "content": "x"}], **{name: value}))
        assert response.status_code == 400
        assert response.json()["error"]["param"] == name


@pytest.mark.parametrize(("name", "value"), CHAT_UNSUPPORTED)
async def test_what_chat_cannot_honour_is_refused(service: Service, name: str, value: Any) -> None:
    request = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], name: value}
    response = await service.post(CHAT_PATH, request)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == name


@pytest.mark.parametrize(
    "fields",
    [
        {name: None for name, _ in UNSUPPORTED + CHAT_UNSUPPORTED},
        {"use_beam_search": False, "length_penalty": 1, "response_format": {"type": "text"}, "suffix": ""},
        {"tools": [], "tool_choice": "auto", "functions": [], "function_call": "none", "modalities": ["text"]},
        {"chat_template_kwargs": {}, "parallel_tool_calls": True},
    ],
)
async def test_what_asks_for_nothing_is_taken(service: Service, fields: dict[str, Any]) -> None:
    request = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], **fields}
    response = await service.post(CHAT_PATH, request)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"{", b'{"n": NaN}', b'{"top_p": 1e999}', b'{"prompt": "\\ud800"}', b'{"n": 1, "n": 2}'],
)
async def test_bodies_that_are_no_json_objects(service: Service, content: bytes) -> None:
    for path in (PATH, CHAT_PATH, "/utils/token_counter", "/tokenize", "/detokenize", f"/v1/{MODEL}/completions"):
        response = await service.post(path, content)
        assert response.status_code == 400, (path, response.text)


def sampling_of(data: dict[str, Any]) -> SamplingParams:
    fields = parse(CompletionFields, {"prompt": "x", **data})
    check_sampling(fields, data, TotalGPTConfig(), max_tokens=fields.max_tokens)
    return to_sampling_params(fields, logprobs=fields.logprobs, prompt_logprobs=fields.prompt_logprobs)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=5,
)
field_names = st.sampled_from(sorted(CompletionFields.model_fields))


@given(st.dictionaries(field_names, json_values, max_size=4))
def test_any_json_is_taken_or_refused_by_name(data: dict[str, Any]) -> None:
    try:
        sampling = sampling_of(data)
    except InvalidParameter as error:
        assert error.param
        assert error.param.partition("[")[0].partition(".")[0] in CompletionFields.model_fields
    else:
        assert 0 <= sampling.temperature <= 2
        assert 0 < sampling.top_p <= 1
        assert sampling.top_k >= 0


@given(st.floats(0, 2))
def test_temperature_is_greedy_or_sampled_safely(temperature: float) -> None:
    canonical = sampling_of({"temperature": temperature}).temperature
    assert canonical == 0 if temperature < 1e-5 else canonical == max(temperature, 0.01)


@given(st.dictionaries(st.integers(0, MAX_INT32), st.floats(allow_nan=False, allow_infinity=False)))
def test_logit_bias_is_clamped(bias: dict[int, float]) -> None:
    canonical = dict(to_logit_bias({str(token_id): value for token_id, value in bias.items()}))
    assert canonical.keys() == bias.keys()
    for token_id, value in canonical.items():
        assert value == bias[token_id] or (abs(value) == 100 and abs(bias[token_id]) > 100)


@given(
    st.lists(st.text(min_size=1), min_size=1) | st.lists(st.lists(st.integers(0, MAX_INT32), min_size=1), min_size=1)
)
def test_prompts_keep_their_order(prompts: list[Any]) -> None:
    canonical = to_prompts(prompts, add_special_tokens=True, max_prompts=1000)
    expected = [TextPrompt(p) if isinstance(p, str) else TokenPrompt(tuple(p)) for p in prompts]
    assert list(canonical) == expected


@given(json_values)
def test_any_prompt_is_taken_or_refused_by_name(value: Any) -> None:
    try:
        assert to_prompts(value, add_special_tokens=False, max_prompts=4)
    except InvalidParameter as error:
        assert error.param is not None
        assert error.param.startswith("prompt")


@given(st.dictionaries(st.text(), json_values))
def test_events_carry_their_payload_on_one_line(payload: dict[str, Any]) -> None:
    try:
        event = sse.event(payload)
    except (ValueError, UnicodeEncodeError):
        return
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    assert b"\n" not in event[:-2]
    assert b"\r" not in event
    assert json.loads(event[len(b"data: ") :]) == payload


tokens = st.builds(TokenLogprob, st.integers(0, 9), st.floats(max_value=0, allow_nan=False), st.text(max_size=3))
positions = st.builds(PositionLogprobs, tokens, st.lists(tokens, max_size=4).map(tuple))


@given(st.lists(positions), st.integers(0, 4), st.integers(0, 9), st.booleans())
def test_logprobs_of_pieces_join_to_those_of_the_whole(
    whole: list[PositionLogprobs], cut: int, offset: int, as_token_ids: bool
) -> None:
    first = TokenLogprob(3, 0.0, "start")

    def logprobs_of(part: list[PositionLogprobs | None], text_offset: int) -> tuple[dict[str, Any], int]:
        return completion_logprobs(part, first, num_top=2, as_token_ids=as_token_ids, text_offset=text_offset)

    everything, end = logprobs_of([None, *whole], offset)
    head, middle = logprobs_of([None, *whole[:cut]], offset)
    tail, tail_end = logprobs_of(list(whole[cut:]), middle)
    assert tail_end == end == offset + len("start") + sum(len(position.chosen.text) for position in whole)
    for name, values in everything.items():
        assert len(values) == len(whole) + 1
        assert head[name] + tail[name] == values
    assert everything["token_logprobs"][0] is None
    assert all(math.isfinite(value) for value in everything["token_logprobs"][1:])
    assert all(len(top) <= 3 for top in everything["top_logprobs"][1:])
    parse_object(json.dumps(everything, allow_nan=False).encode(), max_depth=32)


@given(*[st.none() | st.integers(-1, 20)] * 2)
def test_more_logprobs_include_both(one: int | None, other: int | None) -> None:
    def rank(num: int | None) -> float:
        return -1.0 if num is None else math.inf if num == -1 else num

    assert rank(more_logprobs(one, other)) == max(rank(one), rank(other))
