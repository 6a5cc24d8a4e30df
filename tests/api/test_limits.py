"""Rate limits over the whole surface: what counts, what does not, and what the answers say."""

from typing import Any

import httpx
import pytest

from serve_app.config import DialectLimits, LimitsConfig, WindowConfig
from tests.api.conftest import ClientFactory
from tests.fakes import FakeAdmissionStore, FakeGenerator

AITEXTGEN = "/v1/aitextgen/generate"
INFERKIT = "/v1/models/standard/generate"
COMPLETIONS = "/v1/completions"
PROMPT = {"prompt": "x"}


def limits_of(quota: int, *, counts: Any = "requests", **others: Any) -> LimitsConfig:
    """The same window of a minute for every API."""
    windows = (WindowConfig(name="minute", quota=quota, period_s=60, counts=counts),)
    limits = DialectLimits(windows=windows, **others)
    return LimitsConfig(aitextgen=limits, inferkit=limits, totalgpt=limits)


def remaining(response: httpx.Response) -> int:
    return int(response.headers["x-ratelimit-remaining"])


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


async def test_aitextgen_has_its_documented_limits_by_default(make_client: ClientFactory) -> None:
    client = await make_client()
    response = await client.post(AITEXTGEN, json=PROMPT)
    assert response.headers["ratelimit-policy"] == '"minute";q=100;w=60, "day";q=5000;w=86400'
    assert response.headers["ratelimit"] == '"minute";r=99;t=60, "day";r=4999;t=86400'
    assert response.headers["x-ratelimit-limit"] == "100"
    assert response.headers["x-ratelimit-remaining"] == "99"
    assert response.headers["x-ratelimit-reset"] == "60"
    assert not any(name.startswith("x-ratelimit-limit-") for name in response.headers)
    others = await client.post(INFERKIT, json={"length": 10})
    assert "ratelimit" not in others.headers


async def test_request_beyond_the_quota_is_429_until_the_window_ends(make_client: ClientFactory) -> None:
    clock = Clock()
    generator = FakeGenerator()
    client = await make_client(generator=generator, admission_store=FakeAdmissionStore(now=clock))
    for _ in range(100):
        assert (await client.post(AITEXTGEN, json=PROMPT)).status_code == 200
    clock.now += 29.5
    refused = await client.post(AITEXTGEN, json=PROMPT)
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "31"
    assert refused.headers["ratelimit"].startswith('"minute";r=0;t=31')
    error = refused.json()["error"]
    assert (error["code"], error["type"]) == ("rate_limited", "rate_limit_error")
    assert "minute" in error["message"]
    assert len(generator.requests) == 100
    clock.now += 30.5
    assert (await client.post(AITEXTGEN, json=PROMPT)).status_code == 200


async def test_refused_request_beyond_the_quota_consumes_nothing(make_client: ClientFactory) -> None:
    client = await make_client(limits=limits_of(1))
    await client.post(AITEXTGEN, json=PROMPT)
    first, second = [await client.post(AITEXTGEN, json=PROMPT) for _ in range(2)]
    assert first.status_code == second.status_code == 429
    assert first.headers["x-ratelimit-limit"] == "1"
    assert remaining(first) == remaining(second) == 0


@pytest.mark.parametrize(
    ("path", "content", "status"),
    [
        (AITEXTGEN, b"{", 400),
        (AITEXTGEN, b'{"prompt": ""}', 400),
        (AITEXTGEN, b'{"prompt": "x", "model": "nope"}', 404),
        (INFERKIT, b'{"length": 1}', 400),
        ("/v1/models/nope/generate", b'{"length": 10}', 404),
        (COMPLETIONS, b'{"model": "nope", "prompt": "x"}', 404),
        (COMPLETIONS, b'{"model": "standard", "prompt": "x", "n": true}', 400),
        ("/tokenize", b"{}", 400),
        (AITEXTGEN, b'{"prompt": "' + b"x" * 2_000_000 + b'"}', 413),
    ],
)
async def test_request_that_is_the_clients_fault_counts(
    make_client: ClientFactory, path: str, content: bytes, status: int
) -> None:
    client = await make_client(limits=limits_of(10))
    for left in (9, 8):
        response = await client.post(path, content=content)
        assert response.status_code == status
        assert remaining(response) == left


async def test_refused_requests_beyond_the_quota_are_429_too(make_client: ClientFactory) -> None:
    client = await make_client(limits=limits_of(2))
    statuses = [(await client.post(AITEXTGEN, content=b"{")).status_code for _ in range(3)]
    assert statuses == [400, 400, 429]


async def test_401_and_get_and_unknown_paths_count_nothing(make_client: ClientFactory) -> None:
    store = FakeAdmissionStore()
    client = await make_client(limits=limits_of(10), admission_store=store)
    stranger = await make_client(key=None, limits=limits_of(10), admission_store=store)
    for response in (
        await stranger.post(AITEXTGEN, json=PROMPT),
        await client.post(AITEXTGEN, json=PROMPT, headers={"Authorization": "Bearer wrong"}),
        await client.get("/v1/models"),
        await client.get("/v1/models/nope"),
        await client.post("/nope", json={}),
        await client.get("/health"),
    ):
        assert "ratelimit" not in response.headers
    assert remaining(await client.post(AITEXTGEN, json=PROMPT)) == 9


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/utils/token_counter", {"model": "standard", "prompt": "x"}),
        ("/tokenize", {"prompt": "x"}),
        ("/detokenize", {"tokens": [65]}),
    ],
)
async def test_requests_that_bill_nothing_count_and_are_limited(
    make_client: ClientFactory, path: str, body: dict[str, Any]
) -> None:
    store = FakeAdmissionStore()
    client = await make_client(limits=limits_of(2), admission_store=store)
    responses = [await client.post(path, json=body) for _ in range(3)]
    assert [response.status_code for response in responses] == [200, 200, 429]
    assert list(map(remaining, responses)) == [1, 0, 0]
    assert store.settled == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (INFERKIT, {"length": 10, "streamResponse": True}),
        (COMPLETIONS, {"model": "standard", "prompt": "x", "stream": True}),
        ("/v1/chat/completions", {"model": "standard", "messages": [{"role": "user", "content": "x"}], "stream": True}),
    ],
)
async def test_streams_tell_too(make_client: ClientFactory, path: str, body: dict[str, Any]) -> None:
    response = await (await make_client(limits=limits_of(10))).post(path, json=body)
    assert response.status_code == 200
    assert remaining(response) == 9


async def test_openai_headers_are_on_its_routes(make_client: ClientFactory) -> None:
    client = await make_client(limits=limits_of(10_000, counts="tokens"))
    response = await client.post(COMPLETIONS, json={"model": "standard", "prompt": "abc", "max_tokens": 7})
    assert response.headers["x-ratelimit-limit-tokens"] == "10000"
    assert response.headers["x-ratelimit-remaining-tokens"] == "9990"
    assert response.headers["x-ratelimit-reset-tokens"] == "1m0s"
    assert "x-ratelimit-limit-requests" not in response.headers
    plain = await (await make_client(limits=limits_of(10))).post(COMPLETIONS, json={"model": "standard", "prompt": "x"})
    assert plain.headers["x-ratelimit-remaining-requests"] == "9"


async def test_browsers_may_read_them(make_client: ClientFactory) -> None:
    response = await (await make_client()).post(AITEXTGEN, json=PROMPT)
    exposed = {name.lower() for name in response.headers["access-control-expose-headers"].split(", ")}
    assert "retry-after" in exposed
    assert {name for name in response.headers if "ratelimit" in name} <= exposed


async def test_replay_and_misuse_of_an_idempotency_key_count(make_client: ClientFactory) -> None:
    store = FakeAdmissionStore()
    client = await make_client(limits=limits_of(3), admission_store=store)
    headers = {"Idempotency-Key": "k"}
    responses = [await client.post(AITEXTGEN, json=PROMPT, headers=headers) for _ in range(2)]
    responses.append(await client.post(AITEXTGEN, json={"prompt": "y"}, headers=headers))
    responses.append(await client.post(AITEXTGEN, json=PROMPT, headers=headers))
    assert [response.status_code for response in responses] == [200, 200, 422, 429]
    assert list(map(remaining, responses)) == [2, 1, 0, 0]
    assert len(store.settled) == 1


async def test_request_refused_by_its_window_leaves_its_idempotency_key_free(make_client: ClientFactory) -> None:
    clock = Clock()
    client = await make_client(limits=limits_of(1), admission_store=FakeAdmissionStore(now=clock))
    await client.post(AITEXTGEN, json=PROMPT)
    headers = {"Idempotency-Key": "k"}
    assert (await client.post(AITEXTGEN, json=PROMPT, headers=headers)).status_code == 429
    clock.now += 61
    assert (await client.post(AITEXTGEN, json=PROMPT, headers=headers)).status_code == 200
