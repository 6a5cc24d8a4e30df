"""Idempotency-Key over the whole surface: one effect, the same answer, and what is refused."""

import asyncio
import dataclasses
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from deployments.errors import Conflict, GenerationFailed, InvalidRequest, Overloaded, StorageError
from serve_app.api import create_api
from serve_app.config import HttpConfig
from serve_app.http.idempotency import idempotent
from serve_app.services import Services
from serve_app.use_cases.callers import Principal
from serve_app.use_cases.idempotency import KeptAnswer
from tests.api.administration import running_service
from tests.api.conftest import ClientFactory, make_services
from tests.fake_idempotency import FakeIdempotentRequests
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


async def test_answer_is_sent_even_if_it_cannot_be_kept(make_client: ClientFactory) -> None:
    store = FakeIdempotentRequests()
    store.error = OSError("no space left")
    client = await make_client(idempotency=store)
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
    store = FakeIdempotentRequests()
    services = make_services(generator=generator, idempotency=store)
    path, body = STREAMS[0]
    async with serve(create_api(services)) as port:
        async with RawClient.connect(port) as client:
            await client.post(path, json.dumps(body).encode(), headers=KEYED)
            await client.read_head()
            await client.read_chunk()
        await generator.closed.wait()
        while store.kept:
            await asyncio.sleep(0.01)


class OneAccount(FakeKeys):
    """All keys are of one account."""

    async def authenticate(self, key: str) -> Principal:
        return dataclasses.replace(await super().authenticate(key), account="account")


async def test_another_api_key_of_the_account_is_422(make_client: ClientFactory) -> None:
    services = dataclasses.replace(make_services(), keys=OneAccount("one", "two"))
    statuses = []
    for key in ("one", "two", "one"):
        client = await make_client(services=services, key=key)
        statuses.append((await client.post(AITEXTGEN[0], json=AITEXTGEN[1], headers=KEYED)).status_code)
    assert statuses == [200, 422, 200]


class HeldFinish(FakeIdempotentRequests):
    """Answers are kept when `released` is set; `finishing` tells that one is about to be."""

    def __init__(self) -> None:
        super().__init__()
        self.finishing = asyncio.Event()
        self.released = asyncio.Event()

    async def finish(self, account: str, key: str, answer: KeptAnswer) -> None:
        self.finishing.set()
        await self.released.wait()
        await super().finish(account, key, answer)


async def test_whole_answer_that_was_made_is_kept_where_the_client_left_before_it(make_client: ClientFactory) -> None:
    store = HeldFinish()
    generator = FakeGenerator()
    client = await make_client(generator=generator, idempotency=store)
    asking = asyncio.create_task(client.post(AITEXTGEN[0], json=AITEXTGEN[1], headers=KEYED))
    await store.finishing.wait()
    await cancel(asking)
    store.released.set()
    await kept_answer(store)
    response = await client.post(AITEXTGEN[0], json=AITEXTGEN[1], headers=KEYED)
    assert response.headers[REPLAYED] == "true"
    assert len(generator.requests) == 1


class Effect:
    """An endpoint whose effect takes place when `committed` is set, and then raises `error`."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.started = asyncio.Event()
        self.committed = asyncio.Event()
        self.num_effects = 0

    async def __call__(self, _request: Request) -> Response:
        self.started.set()
        await self.committed.wait()
        self.num_effects += 1
        if self.error is not None:
            raise self.error
        return Response(b"done", status_code=201)


def once(endpoint: Effect, store: FakeIdempotentRequests) -> Callable[[], Coroutine[Any, Any, Response]]:
    async def identify(_request: Request) -> Principal:
        return Principal(account="account", key_id="key")

    decorated = idempotent(make_services(idempotency=store), identify, to_the_end=True)(endpoint.__call__)

    async def ask() -> Response:
        async def receive() -> Message:
            return {"type": "http.request", "body": b"{}", "more_body": False}

        headers = [(b"idempotency-key", b"key-1"), (b"host", b"localhost")]
        scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers}
        return await decorated(Request(scope, receive))

    return ask


async def test_effect_goes_on_and_is_kept_where_the_client_leaves_while_it_is_committed() -> None:
    effect, store = Effect(), FakeIdempotentRequests()
    ask = once(effect, store)
    asking = asyncio.create_task(ask())
    await effect.started.wait()
    asking.cancel()
    effect.committed.set()
    await ended(asking)
    await kept_answer(store)
    assert (await ask()).headers[REPLAYED] == "true"
    assert effect.num_effects == 1


@pytest.mark.parametrize(
    ("error", "is_free"),
    [
        (InvalidRequest("no"), True),
        (StorageError("lost"), False),
        (StorageError("away", is_without_effect=True), True),
        (ValueError("bug"), False),
    ],
)
async def test_effect_that_failed_is_tried_again_only_if_it_did_not_take_place(error: Exception, is_free: bool) -> None:
    effect, store = Effect(error), FakeIdempotentRequests()
    effect.committed.set()
    ask = once(effect, store)
    with pytest.raises(type(error)):
        await ask()
    with pytest.raises(type(error) if is_free else Conflict):
        await ask()
    assert effect.num_effects == (2 if is_free else 1)


async def test_grant_goes_on_where_the_client_leaves(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_service(sqlite_url) as service:
        grant = service.services.accounts.grant
        granted, leave = asyncio.Event(), asyncio.Event()

        async def slow_grant(*args: Any, **kwargs: Any) -> Any:
            answer = await grant(*args, **kwargs)
            granted.set()
            await leave.wait()
            return answer

        monkeypatch.setattr(service.services.accounts, "grant", slow_grant)
        path, body = "/v1/admin/accounts/acme/credits", {"amount": 10}
        asking = asyncio.create_task(service.admin.post(path, json=body, headers=KEYED))
        await granted.wait()
        asking.cancel()
        assert (await service.admin.post(path, json=body, headers=KEYED)).status_code == 409
        leave.set()
        await ended(asking)
        while (response := await service.admin.post(path, json=body, headers=KEYED)).status_code == 409:
            await asyncio.sleep(0.01)
        assert response.headers[REPLAYED] == "true"
        assert (await service.admin.get("/v1/admin/accounts/acme")).json()["credit"] == 10


async def cancel(task: "asyncio.Task[Any]") -> None:
    task.cancel()
    await ended(task)


async def ended(cancelled: "asyncio.Task[Any]") -> None:
    await asyncio.gather(cancelled, return_exceptions=True)
    assert cancelled.cancelled()


async def kept_answer(store: FakeIdempotentRequests) -> None:
    while not any(store.kept.values()):
        await asyncio.sleep(0.01)


@pytest.fixture
def services() -> Services:
    return make_services()
