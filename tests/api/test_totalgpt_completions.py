"""Text completions of the TotalGPT API, answered whole: forms of prompts, choices, echo, log-probabilities, usage."""

import math
from typing import Any

import httpx
import pytest

from deployments.errors import Overloaded
from deployments.types import (
    FinishReason,
    GenerateRequest,
    GenerateResult,
    PositionLogprobs,
    PromptStart,
    SequenceOutput,
    TextPrompt,
    TokenLogprob,
    Usage,
)
from serve_app.config import TotalGPTConfig
from tests.api.conftest import MODEL, OTHER_MODEL, ClientFactory
from tests.fakes import FakeGenerator, FakeTokenizer, text_of, token_ids_of

PATH = "/v1/completions"


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "Let", **fields}


def choices_of(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    choices: list[dict[str, Any]] = response.json()["choices"]
    return choices


async def test_whole_answer(make_client: ClientFactory) -> None:
    client = await make_client(generator=FakeGenerator(" there", " be", stop_reason=7))
    response = await client.post(PATH, json=body())
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert answer.pop("id").startswith("cmpl-")
    assert answer.pop("created") > 1_700_000_000
    assert answer.pop("system_fingerprint").startswith("fp_")
    assert answer == {
        "object": "text_completion",
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "text": " there be",
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": 7,
                "prompt_logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 9,
            "total_tokens": 12,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


async def test_ids_differ_and_fingerprint_belongs_to_the_model(make_client: ClientFactory) -> None:
    client = await make_client()
    one, same, other = [
        (await client.post(PATH, json=body(model=model), headers={"x-request-id": "mine"})).json()
        for model in (MODEL, "standard", OTHER_MODEL)
    ]
    assert len({one["id"], same["id"], other["id"]}) == 3
    assert one["system_fingerprint"] == same["system_fingerprint"] != other["system_fingerprint"]
    assert same["model"] == "standard"


async def test_documented_request(make_client: ClientFactory) -> None:
    """The example of the API's documentation, in both of its forms."""
    generator = FakeGenerator("Who built the ark?")
    client = await make_client(generator=generator)
    prompt = "Generate a Bible question with four multiple-choice answers (one correct, three incorrect)."
    parameters = {"prompt": prompt, "max_tokens": 7000, "temperature": 0.7, "top_k": 40, "repetition_penalty": 1.2}
    in_body = await client.post(PATH, json={"model": MODEL, **parameters})
    in_path = await client.post(f"/v1/{MODEL}/completions", json=parameters)
    for response in (in_body, in_path):
        assert choices_of(response)[0]["text"] == "Who built the ark?"
    for request in generator.requests:
        assert text_of(request.prompt_token_ids) == prompt
        sampling = request.sampling
        assert (sampling.max_tokens, sampling.temperature, sampling.top_k) == (7000, 0.7, 40)
        assert sampling.repetition_penalty == 1.2


@pytest.mark.parametrize(
    "path",
    [
        "/v1/test-org/test-model/completions",
        "/v1/test-org%2Ftest-model/completions",
        "/engines/test-org/test-model/completions",
        "/openai/deployments/test-org/test-model/completions",
    ],
)
async def test_model_of_the_path_wins(make_client: ClientFactory, path: str) -> None:
    client = await make_client()
    response = await client.post(path, json=body(model=OTHER_MODEL))
    assert choices_of(response)[0]["text"] == " there was light"
    assert response.json()["model"] == MODEL


async def test_completions_without_version(make_client: ClientFactory) -> None:
    client = await make_client()
    choices_of(await client.post("/completions", json=body()))


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("Let", ["Let"]),
        (["Let", "Be"], ["Let", "Be"]),
        ([76, 101], ["Le"]),
        ([[76, 101], [66]], ["Le", "B"]),
        (["Let"], ["Let"]),
        ([[76]], ["L"]),
        ([0], ["\0"]),
    ],
)
async def test_forms_of_prompts(make_client: ClientFactory, prompt: Any, texts: list[str]) -> None:
    generator = FakeGenerator()
    client = await make_client(generator=generator)
    response = await client.post(PATH, json=body(prompt=prompt))
    assert [choice["index"] for choice in choices_of(response)] == list(range(len(texts)))
    assert [text_of(request.prompt_token_ids) for request in generator.requests] == texts
    assert response.json()["usage"]["prompt_tokens"] == sum(map(len, texts))


async def test_special_tokens_can_be_left_out(make_client: ClientFactory) -> None:
    tokenizer = FakeTokenizer()
    client = await make_client(tokenizer=tokenizer)
    await client.post(PATH, json=body())
    await client.post(PATH, json=body(add_special_tokens=False))
    assert [request.prompts for request in tokenizer.requests] == [
        (TextPrompt("Let", PromptStart.DEFAULT),),
        (TextPrompt("Let", PromptStart.PLAIN),),
    ]


async def test_choices_of_several_prompts_and_samples_are_in_order(make_client: ClientFactory) -> None:
    generator = FakeGenerator(texts=[[" one"], [" two"], [" three"]])
    client = await make_client(generator=generator)
    response = await client.post(PATH, json=body(prompt=["A", "B"], n=3, echo=True))
    choices = choices_of(response)
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3, 4, 5]
    assert [choice["text"] for choice in choices] == ["A one", "A two", "A three", "B one", "B two", "B three"]
    assert response.json()["usage"]["completion_tokens"] == 2 * len(" one two three")


async def test_best_of_returns_the_likeliest(make_client: ClientFactory) -> None:
    # The logarithms of the fake's probabilities are -1, -1/2 and -1/3 for each token.
    generator = FakeGenerator(texts=[["aaa"], ["bbb"], ["ccc"]])
    client = await make_client(generator=generator)
    response = await client.post(PATH, json=body(n=2, best_of=3))
    assert [(choice["index"], choice["text"]) for choice in choices_of(response)] == [(0, "ccc"), (1, "bbb")]
    assert response.json()["usage"]["completion_tokens"] == 9
    assert choices_of(response)[0]["logprobs"] is None
    assert generator.request.num_sequences == 3


async def test_logprobs_of_the_output(make_client: ClientFactory) -> None:
    client = await make_client(generator=FakeGenerator("ab", "d"))
    response = await client.post(PATH, json=body(logprobs=2))
    assert choices_of(response)[0]["logprobs"] == {
        "tokens": ["a", "b", "d"],
        "token_logprobs": [-1.0, -1.0, -1.0],
        "top_logprobs": [{"a": -1.0, "b": -2.0}, {"b": -1.0, "c": -2.0}, {"d": -1.0, "e": -2.0}],
        "text_offset": [0, 1, 2],
    }


async def test_logprobs_zero_reports_the_chosen_token_alone(make_client: ClientFactory) -> None:
    client = await make_client(generator=FakeGenerator("a"))
    response = await client.post(PATH, json=body(logprobs=0))
    assert choices_of(response)[0]["logprobs"]["top_logprobs"] == [{"a": -1.0}]


async def test_echo_puts_the_prompt_first(make_client: ClientFactory) -> None:
    generator = FakeGenerator(" go")
    client = await make_client(generator=generator)
    response = await client.post(PATH, json=body(echo=True))
    assert choices_of(response)[0]["text"] == "Let go"
    assert generator.request.sampling.prompt_logprobs is None


async def test_echo_with_logprobs_covers_prompt_and_output(make_client: ClientFactory) -> None:
    generator = FakeGenerator(" x")
    client = await make_client(generator=generator)
    response = await client.post(PATH, json=body(prompt=[76, 101], echo=True, logprobs=1))
    [choice] = choices_of(response)
    assert choice["text"] == "Le x"
    assert choice["logprobs"] == {
        "tokens": ["L", "e", " ", "x"],
        "token_logprobs": [None, -1.0, -1.0, -1.0],
        "top_logprobs": [None, {"e": -1.0}, {" ": -1.0}, {"x": -1.0}],
        "text_offset": [0, 1, 2, 3],
    }
    assert generator.request.sampling.prompt_logprobs == 1


async def test_scoring_a_batch_of_token_ids(make_client: ClientFactory) -> None:
    """What evaluation harnesses send: the log-probability of each token of a text, one new token dropped by them."""
    client = await make_client(generator=FakeGenerator("zz"))
    prompts = [[ord("a") + i for i in range(length)] for length in (1, 5, 3)]
    fields = {"prompt": prompts, "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0, "seed": 1234}
    choices = choices_of(await client.post(PATH, json=body(**fields)))
    for index, (choice, prompt) in enumerate(zip(choices, prompts, strict=True)):
        assert choice["index"] == index
        logprobs = choice["logprobs"]
        assert logprobs["tokens"] == [*map(chr, prompt), "z"]
        assert [top is None for top in logprobs["top_logprobs"]] == [True] + [False] * len(prompt)
        assert len({len(values) for values in logprobs.values()}) == 1


async def test_no_tokens_at_all_scores_the_prompt(make_client: ClientFactory) -> None:
    generator = FakeGenerator("zz")
    client = await make_client(generator=generator)
    response = await client.post(PATH, json=body(max_tokens=0, echo=True, logprobs=0, return_token_ids=True, n=2))
    for choice in choices_of(response):
        assert choice["text"] == "Let"
        assert choice["logprobs"]["tokens"] == ["L", "e", "t"]
        assert choice["finish_reason"] == "length"
        assert choice["token_ids"] == []
    assert response.json()["usage"]["completion_tokens"] == 0
    assert generator.request.sampling.max_tokens == 1


async def test_prompt_logprobs_in_the_format_of_vllm(make_client: ClientFactory) -> None:
    generator = FakeGenerator("z")
    client = await make_client(generator=generator)
    response = await client.post(PATH, json=body(prompt="ab", prompt_logprobs=2))
    [choice] = choices_of(response)
    assert choice["text"] == "z"
    assert choice["logprobs"] is None
    assert choice["prompt_logprobs"] == [
        None,
        {
            "98": {"logprob": -1.0, "rank": 1, "decoded_token": "b"},
            "99": {"logprob": -2.0, "rank": 2, "decoded_token": "c"},
        },
    ]


async def test_echo_shows_no_more_alternatives_than_asked_for(make_client: ClientFactory) -> None:
    generator = FakeGenerator("z")
    client = await make_client(generator=generator)
    response = await client.post(PATH, json=body(prompt="ab", prompt_logprobs=3, logprobs=1, echo=True))
    [choice] = choices_of(response)
    assert generator.request.sampling.prompt_logprobs == 3
    assert choice["logprobs"]["top_logprobs"][1] == {"b": -1.0}
    assert len(choice["prompt_logprobs"][1]) == 3


async def test_token_ids_are_answered_where_asked_for(make_client: ClientFactory) -> None:
    client = await make_client(generator=FakeGenerator("ab"))
    [choice] = choices_of(await client.post(PATH, json=body(return_token_ids=True)))
    assert choice["token_ids"] == [97, 98]
    assert choice["prompt_token_ids"] == list(token_ids_of("Let"))


async def test_tokens_can_be_named_by_their_ids(make_client: ClientFactory) -> None:
    client = await make_client(generator=FakeGenerator("a"))
    response = await client.post(PATH, json=body(logprobs=1, echo=True, return_tokens_as_token_ids=True))
    logprobs = choices_of(response)[0]["logprobs"]
    assert logprobs["tokens"] == ["token_id:76", "token_id:101", "token_id:116", "token_id:97"]
    assert logprobs["top_logprobs"][-1] == {"token_id:97": -1.0}
    assert logprobs["text_offset"] == [0, 1, 2, 3]


async def test_without_detokenizing_the_answer_is_token_ids(make_client: ClientFactory) -> None:
    client = await make_client(generator=FakeGenerator("ab"))
    [choice] = choices_of(await client.post(PATH, json=body(detokenize=False)))
    assert choice["text"] == ""
    assert choice["token_ids"] == [97, 98]


class UncertainGenerator(FakeGenerator):
    """Answers one token that the model thought impossible, and that is the second half of a code point."""

    async def generate(self, request: GenerateRequest) -> GenerateResult:
        self.requests.append(request)
        chosen = TokenLogprob(5, -math.inf, "\ufffd")
        position = PositionLogprobs(chosen, (TokenLogprob(6, -0.25, "\ufffd"),))
        sequence = SequenceOutput(0, (5,), "", (position,), FinishReason.LENGTH, None)
        return GenerateResult((sequence,), None, Usage(3, 1, cached_tokens=2))


async def test_impossible_tokens_have_a_finite_logprob(make_client: ClientFactory) -> None:
    client = await make_client(generator=UncertainGenerator())
    response = await client.post(PATH, json=body(logprobs=1))
    assert "Infinity" not in response.text
    [choice] = choices_of(response)
    assert choice["logprobs"]["token_logprobs"] == [-9999.0]
    # Two tokens of one text: the likelier one stays.
    assert choice["logprobs"]["top_logprobs"] == [{"\ufffd": -0.25}]
    assert choice["finish_reason"] == "length"
    assert response.json()["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}


async def test_context_overflow_is_clamped(make_client: ClientFactory) -> None:
    generator = FakeGenerator()
    client = await make_client(generator=generator, tokenizer=FakeTokenizer(context_length=10))
    choices_of(await client.post(PATH, json=body(max_tokens=7000, min_tokens=100)))
    assert (generator.request.sampling.max_tokens, generator.request.sampling.min_tokens) == (7, 7)


async def test_context_overflow_can_be_refused(make_client: ClientFactory) -> None:
    client = await make_client(tokenizer=FakeTokenizer(context_length=10), totalgpt=TotalGPTConfig(overflow="reject"))
    response = await client.post(PATH, json=body(max_tokens=8))
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    choices_of(await client.post(PATH, json=body(max_tokens=7)))


@pytest.mark.parametrize("prompt", ["0123456789", ["ok", "0123456789"]])
async def test_prompt_beyond_the_context_is_refused(make_client: ClientFactory, prompt: Any) -> None:
    client = await make_client(tokenizer=FakeTokenizer(context_length=10))
    response = await client.post(PATH, json=body(prompt=prompt))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"


@pytest.mark.parametrize(("truncate", "kept"), [(4, "6789"), (50, "0123456789"), (-1, "456789")])
async def test_prompts_are_truncated_from_the_left(make_client: ClientFactory, truncate: int, kept: str) -> None:
    generator = FakeGenerator("!")
    client = await make_client(generator=generator, tokenizer=FakeTokenizer(context_length=11))
    response = await client.post(
        PATH, json=body(prompt="0123456789", truncate_prompt_tokens=truncate, max_tokens=5, echo=True)
    )
    assert text_of(generator.request.prompt_token_ids) == kept
    assert choices_of(response)[0]["text"] == f"{kept}!"


@pytest.mark.parametrize(
    "fields",
    [
        {"logprobs": -1},
        {"prompt_logprobs": -1},
        {"logprobs": 20, "max_tokens": 7000, "n": 4},
        {"logprobs": 20, "max_tokens": 1, "echo": True, "prompt": ["ab" * 2000] * 6},
        {"prompt_logprobs": 20, "prompt": [[1] * 4000] * 6},
    ],
)
async def test_log_probabilities_of_one_answer_are_bounded(make_client: ClientFactory, fields: dict[str, Any]) -> None:
    generator = FakeGenerator()
    client = await make_client(generator=generator)
    response = await client.post(PATH, json=body(**fields))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == next(iter(fields))
    assert generator.requests == []


@pytest.mark.parametrize(
    "fields",
    [
        {"logprobs": 20, "max_tokens": 7000},
        {"logprobs": 20, "max_tokens": 10**6, "n": 2},
        {"logprobs": 20, "prompt": ["ab" * 2000] * 6},
        {"prompt_logprobs": 0, "prompt": [[1] * 4000] * 6},
    ],
)
async def test_log_probabilities_within_the_bound(make_client: ClientFactory, fields: dict[str, Any]) -> None:
    client = await make_client(generator=FakeGenerator("a"))
    choices_of(await client.post(PATH, json=body(**fields)))


async def test_unknown_fields_are_ignored(make_client: ClientFactory) -> None:
    client = await make_client()
    extras = {"user": "me", "priority": 1, "request_id": "x", "metadata": {}, "store": True, "whatever": [1]}
    choices_of(await client.post(PATH, json=body(**extras)))


async def test_errors_of_the_generator_keep_their_status(make_client: ClientFactory) -> None:
    client = await make_client(generator=FakeGenerator(error=Overloaded("too many requests are waiting", 3)))
    response = await client.post(PATH, json=body())
    assert response.status_code == 503
    assert response.headers["retry-after"] == "3"


async def test_key_is_asked_for_before_the_model_and_the_body(make_client: ClientFactory) -> None:
    stranger, friend = await make_client(key=None), await make_client()
    for path in (PATH, "/v1/nobody/completions"):
        assert (await stranger.post(path, content=b"{")).status_code == 401
    assert (await friend.post("/v1/nobody/completions", content=b"{")).status_code == 404
    assert (await friend.post(PATH, json={"model": "nobody", "n": "x"})).status_code == 404
    assert (await friend.post(PATH, content=b"{")).status_code == 400


async def test_requests_of_accounts_share_no_cache(make_client: ClientFactory) -> None:
    generator = FakeGenerator()
    client = await make_client(generator=generator)
    await client.post(PATH, json=body())
    assert generator.request.cache_salt == "account-of-tt-test-key"


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded"])
async def test_only_json_is_taken(make_client: ClientFactory, content_type: str) -> None:
    client = await make_client()
    response = await client.post(PATH, content=b'{"prompt": "x"}', headers={"content-type": content_type})
    assert response.status_code == 400
