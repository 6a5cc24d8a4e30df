"""Idempotency-Key over the whole surface: one effect, the same answer, and what is refused."""

import asyncio
import dataclasses
import json
from typing import Any

import pytest

from deployments.errors import GenerationFailed, Overloaded
from serve_app.api import create_api
from serve_app.config import HttpConfig
from serve_app.services import Services
from tests.api.conftest import ClientFactory, make_services
from tests.fakes import FakeGenerator, FakeKeys
from tests.live_server import RawClient, serve

AITEXTGEN = ("/v1/aitextgen/generate", {"prompt": "x"})
INFERKIT = ("/v1/models/standard/generate", {"length": 10})
COMPLETIONS = ("/v1/completions", {"model": "standard", "prompt": "x"})
CHAT = ("/v1/chat/completions", {"model": "standard", "messages": [{"role": "user", "content": "x"}]})
UNARY = [AITEXTGEN, INFERKIT, COMPLETIONS, CHAT]
STREAMS: list[tuple[str, dict[str, Any]]] = [
    (INFERKIT[0], {**INFERKIT[1], "streamResponse": True}),
    (COMPLETIONS[0], {**COMPLETIONS[1], "stream": True}),
    (CHAT[0], {**CHAT[1], "stream": True}),
]
KEYED = {"Idempotency-Key": "key-1"}
REPLAYED = "idempotent-replayed"


@pytest.mark.parametrize(("path", "body"), [*UNARY, *STREAMS])
async def test_repeated_request_has_one_effect_and_the_same_answer(
    make_client: ClientFactory, path: str, body: dict[str, Any]
) -> None:
    generator = FakeGenerator()
    client = await make_client(generator=generator)
    first, second = [await client.post(path, json=body, headers=KEYED) for _ in range(2)]
    assert len(generator.requests) == 1
    assert first.status_code == second.status_code == 200
    assert first.content == second.content
    assert first.headers["content-type"] == second.headers["content-type"]
    assert REPLAYED not in first.headers
    assert second.headers[REPLAYED] == "true"


async def test_other_keys_other_accounts_and_no_key_are_other_requests(make_client: ClientFactory) -> None:
    generator = FakeGenerator()
    services = make_services(generator=generator)
    services = dataclasses.replace(services, keys=FakeKeys("one", "two"))
    path, body = AITEXTGEN
    for key, headers in (("one", KEYED), ("two", KEYED), ("one", {"Idempotency-Key": "key-2"}), ("one", {})):
        client = await make_client(services=services, key=key)
        response = await client.post(path, json=body, headers=headers)
        assert response.status_code == 200
        assert REPLAYED not in response.headers
    assert len(generator.requests) == 4


@pytest.mark.parametrize("change", ["body", "path"])
async def test_another_request_under_the_same_key_is_422(make_client: ClientFactory, change: str) -> None:
    generator = FakeGenerator()
    client = await make_client(generator=generator)
    await client.post(COMPLETIONS[0], json=COMPLETIONS[1], headers=KEYED)
    path = "/v1/standard/completions" if change == "path" else COMPLETIONS[0]
    body = {**COMPLETIONS[1], "prompt": "y"} if change == "body" else COMPLETIONS[1]
    response = await client.post(path, json=body, headers=KEYED)
    assert response.status_code == 422
    assert response.json()["error"]["code"] == "idempotency_mismatch"
    assert len(generator.requests) == 1


async def test_request_that_runs_is_409_and_runs_on(make_client: ClientFactory) -> None:
    generator = FakeGenerator(hang=True)
    client = await make_client(generator=generator)
    path, body = AITEXTGEN
    running = asyncio.create_task(client.post(path, json=body, headers=KEYED))
    await generator.started.wait()
    response = await client.post(path, json=body, headers=KEYED)
    assert response.status_code == 409
    assert response.json()["error"]["code"] == "conflict"
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("error", [Overloaded("full"), GenerationFailed("broken"), ValueError("unknown")])
async def test_refused_request_is_forgotten(make_client: ClientFactory, error: Exception) -> None:
    generator = FakeGenerator(error=error)
    client = await make_client(generator=generator)
    path, body = AITEXTGEN
    assert (await client.post(path, json=body, headers=KEYED)).status_code >= 500
    generator.error = None
    response = await client.post(path, json=body, headers=KEYED)
    assert response.status_code == 200
    assert REPLAYED not in response.headers


async def test_bad_request_leaves_its_key_free_for_the_corrected_one(make_client: ClientFactory) -> None:
    client = await make_client()
    assert (await client.post(AITEXTGEN[0], json={"prompt": 1}, headers=KEYED)).status_code == 400
    assert (await client.post("/v1/models/nope/generate", json={"length": 10}, headers=KEYED)).status_code == 404
    assert (await client.post(AITEXTGEN[0], json=AITEXTGEN[1], headers=KEYED)).status_code == 200


async def test_stream_that_breaks_is_kept_with_its_error(make_client: ClientFactory) -> None:
    generator = FakeGenerator(" a", error=GenerationFailed("broken"))
    client = await make_client(generator=generator)
    path, body = STREAMS[0]
    first, second = [await client.post(path, json=body, headers=KEYED) for _ in range(2)]
    assert first.content == second.content
    assert "error" in json.loads(second.text.splitlines()[-1])
    assert len(generator.requests) == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "é", "a\tb"])
async def test_key_that_cannot_be_one_is_400_and_named(make_client: ClientFactory, key: str) -> None:
    generator = FakeGenerator()
    client = await make_client(generator=generator)
    response = await client.post(AITEXTGEN[0], json=AITEXTGEN[1], headers={b"Idempotency-Key": key.encode()})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "Idempotency-Key"
    assert "Idempotency-Key" in response.json()["error"]["message"]
    assert generator.requests == []


async def test_two_keys_are_400(make_client: ClientFactory) -> None:
    client = await make_client()
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    assert (await client.post(AITEXTGEN[0], json=AITEXTGEN[1], headers=headers)).status_code == 400


async def test_longest_key_is_taken(make_client: ClientFactory) -> None:
    client = await make_client()
    response = await client.post(AITEXTGEN[0], json=AITEXTGEN[1], headers={"Idempotency-Key": "~" * 255})
    assert response.status_code == 200


async def test_401_comes_first(make_client: ClientFactory) -> None:
    client = await make_client(key=None)
    for key in ("key-1", "x" * 256):
        response = await client.post(AITEXTGEN[0], json=AITEXTGEN[1], headers={"Idempotency-Key": key})
        assert response.status_code == 401


async def test_body_over_the_limit_is_413(make_client: ClientFactory) -> None:
    client = await make_client(http=HttpConfig(max_body_bytes=100))
    response = await client.post(AITEXTGEN[0], json={"prompt": "x" * 100}, headers=KEYED)
    assert response.status_code == 413


async def test_answer_over_its_bound_is_not_kept(make_client: ClientFactory) -> None:
    generator = FakeGenerator()
    client = await make_client(generator=generator, http=HttpConfig(max_kept_answer_bytes=10))
    for path, body in (AITEXTGEN, STREAMS[0]):
        for _ in range(2):
            response = await client.post(path, json=body, headers={"Idempotency-Key": path})
            assert response.status_code == 200
            assert REPLAYED not in response.headers
    assert len(generator.requests) == 4


async def test_answer_is_sent_even_if_it_cannot_be_kept(make_client: ClientFactory, services: Services) -> None:
    services.idempotency.error = OSError("no space left")  # type: ignore[attr-defined]
    client = await make_client(services=services)
    assert (await client.post(AITEXTGEN[0], json=AITEXTGEN[1], headers=KEYED)).status_code == 200
    assert (await client.post(AITEXTGEN[0], json=AITEXTGEN[1], headers=KEYED)).status_code == 409


async def test_replayed_stream_comes_in_the_chunks_in_which_it_was_sent(services: Services) -> None:
    framings = []
    async with serve(create_api(services)) as port:
        for _ in range(2):
            async with RawClient.connect(port) as client:
                await client.post(STREAMS[1][0], json.dumps(STREAMS[1][1]).encode(), headers=KEYED)
                status, _headers = await client.read_head()
                assert status == 200
                framings.append(await client.read_body_chunks())
    assert framings[0] == framings[1]
    assert len(framings[0]) > 3


async def test_client_that_leaves_a_stream_leaves_its_key_free() -> None:
    generator = FakeGenerator("a", hang=True)
    services = make_services(generator=generator)
    path, body = STREAMS[0]
    async with serve(create_api(services)) as port:
        async with RawClient.connect(port) as client:
            await client.post(path, json.dumps(body).encode(), headers=KEYED)
            await client.read_head()
            await client.read_chunk()
        await generator.closed.wait()
        kept: dict[Any, Any] = services.idempotency.kept  # type: ignore[attr-defined]
        async with asyncio.timeout(5):
            while kept:
                await asyncio.sleep(0.01)


@pytest.fixture
def services() -> Services:
    return make_services()
