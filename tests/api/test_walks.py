"""Walks over every route of the service: with no key, with a key that lacks the scope, with another account's key."""

import re
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest

from serve_app.api import create_api
from tests.api.administration import Service, running_service
from tests.api.conftest import make_services
from tests.fake_fine_tuner import FakeFineTuner

OPEN = {"/health", "/ready", "/docs", "/docs/reference.css", "/openapi.json"}
OWN = {"/v1/account", "/v1/usage"}


def routes(found: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """Method and path of every route, also of those that the reference does not show."""
    for route in found:
        if hasattr(route, "original_router"):
            yield from routes(route.original_router.routes)
        else:
            for method in sorted(set(route.methods) - {"HEAD", "OPTIONS"}):
                yield method, route.path


ROUTES = list(routes(create_api(make_services()).routes))
KEYED = [(method, path) for method, path in ROUTES if path not in OPEN]
ADMIN = [(method, path) for method, path in KEYED if path.startswith("/v1/admin/")]
_TUNES = re.compile(r"/finetune|/webhooks|/fine_tuning/|/files|/(un)?deploy$")
_MAKES_OR_ENDS_MODELS = {
    ("POST", "/v1/models"),
    ("DELETE", "/v1/models/{id:path}"),
    ("DELETE", "/models/{id:path}"),
}
TUNING = [(method, path) for method, path in KEYED if _TUNES.search(path) or (method, path) in _MAKES_OR_ENDS_MODELS]
DIALECTS = [route for route in KEYED if route not in (*ADMIN, *TUNING) and route[1] not in OWN]


def concrete(path: str, **values: str) -> str:
    """The path with its parameters filled in: the given ones, else names of models."""
    return re.sub(r"\{(\w+)(?::path)?\}", lambda match: values.get(match[1], "standard"), path)


@pytest.fixture
async def service(sqlite_url: str) -> AsyncIterator[Service]:
    async with running_service(sqlite_url) as running:
        yield running


def test_the_walks_see_every_route() -> None:
    paths = {path for _, path in ROUTES}
    assert {"/v1/aitextgen/generate", "/v1/admin/ledger", "/v1/usage", *OPEN} <= paths
    assert len(ADMIN) >= 15
    assert len(DIALECTS) >= 15
    assert len(TUNING) >= 5


async def test_without_a_key_every_route_is_401(service: Service) -> None:
    del service.client.headers["Authorization"]
    for method, path in KEYED:
        if (method, path) == ("GET", "/v1/models/{id:path}/generate"):
            continue  # 405 whoever asks
        response = await service.client.request(method, concrete(path), json={})
        assert response.status_code == 401, (method, path)


async def test_key_without_the_admin_scope_may_administer_nothing(service: Service) -> None:
    key, key_id = await service.new_key("acme", scopes=["inference", "fine-tune"])
    before = (await service.admin.get("/v1/admin/audit")).json()
    async with service.with_key(key) as client:
        for method, path in ADMIN:
            for values in ({"account": "acme", "key": key_id}, {"account": "nobody", "key": "nothing"}):
                headers = {"Idempotency-Key": f"{method} {path}"}
                response = await client.request(method, concrete(path, **values), json={}, headers=headers)
                assert response.status_code == 403, (method, path)
                assert response.json()["error"]["code"] == "permission_denied"
    assert (await service.admin.get("/v1/admin/audit")).json() == before


@pytest.mark.parametrize("scopes", [["fine-tune"], ["admin"], ["fine-tune", "admin"]])
async def test_key_without_the_inference_scope_may_generate_nothing(service: Service, scopes: list[str]) -> None:
    key, _ = await service.new_key("acme", scopes=scopes)
    async with service.with_key(key) as client:
        for method, path in [*DIALECTS, *(("GET", path) for path in sorted(OWN))]:
            if (method, path) == ("GET", "/v1/models/{id:path}/generate"):
                continue
            response = await client.request(method, concrete(path), json={})
            assert response.status_code == 403, (method, path)
            assert "ratelimit" not in response.headers


@pytest.mark.parametrize("scopes", [["inference"], ["admin"], ["inference", "admin"]])
async def test_key_without_the_fine_tuning_scope_may_train_nothing(service: Service, scopes: list[str]) -> None:
    key, _ = await service.new_key("acme", scopes=scopes)
    async with service.with_key(key) as client:
        for method, path in TUNING:
            response = await client.request(method, concrete(path), json={})
            assert response.status_code == 403, (method, path)
            assert "ratelimit" not in response.headers


async def test_another_account_finds_nothing_of_the_first(service: Service) -> None:
    """Everything that an account can own or leave behind, asked for by a key of another account, on every route."""
    _, first_key_id = await service.new_key("acme", name="secret-name")
    body = {"model": "standard", "prompt": "abc", "max_tokens": 5}
    headers = {"Idempotency-Key": "of-acme"}
    first = await service.client.post("/v1/completions", json=body, headers=headers)
    await service.admin.post("/v1/admin/accounts", json={"id": "second"})
    second_key, _ = await service.new_key("second")
    marks = ("acme", first_key_id, "secret-name", first.json()["id"])
    async with service.with_key(second_key) as client:
        answers: list[Any] = []
        for method, path in KEYED:
            for name in (first_key_id, "acme"):
                values = dict.fromkeys(("account", "key", "id", "model"), name)
                response = await client.request(method, concrete(path, **values), json={})
                assert response.status_code in (200, 400, 403, 404, 405), (method, path)
                if "{" in path and response.status_code != 405:
                    assert response.status_code in (403, 404), (method, path)
                if path not in ("/v1/models", "/models"):
                    answers.append(response)
        answers.append(await client.get("/v1/account"))
        answers.append(await client.get("/v1/usage"))
        for response in answers:
            if response.status_code == 200:
                assert not any(mark in response.text for mark in marks), response.url
        foreign = await client.get("/v1/usage", params={"key": first_key_id})
        assert foreign.status_code == 404
        repeated = await client.post("/v1/completions", json=body, headers=headers)
        assert repeated.status_code == 200
        assert repeated.json()["id"] != first.json()["id"]
        assert "idempotent-replayed" not in repeated.headers
        usage = (await client.get("/v1/usage")).json()["data"]
        assert sum(row["requests"] for row in usage) == 1
    own = (await service.client.get("/v1/usage")).json()["data"]
    assert sum(row["requests"] for row in own) == 1


async def test_another_account_finds_nothing_that_the_first_has_trained(sqlite_url: str) -> None:
    """Files, jobs and models by their ids, on every route that takes one."""
    async with running_service(sqlite_url, fine_tuner=FakeFineTuner()) as service:
        first, _ = await service.new_key("acme", scopes=["inference", "fine-tune"])
        async with service.with_key(first) as client:
            body = {"training_data": ["Once upon a time."], "name": "secret-name"}
            model = (await client.post("/v1/aitextgen/finetune", json=body)).json()["model_id"]
            [job] = (await client.get("/v1/fine_tuning/jobs")).json()["data"]
        ids = {"job": job["id"], "file": job["training_file"], "id": model, "model": model}
        await service.admin.post("/v1/admin/accounts", json={"id": "second"})
        second, _ = await service.new_key("second", scopes=["inference", "fine-tune"])
        asked = 0
        async with service.with_key(second) as client:
            for method, path in [*TUNING, *DIALECTS]:
                response = await client.request(method, concrete(path, **ids), json={})
                if "{" in path and response.status_code != 405:
                    assert response.status_code == 404, (method, path)
                    asked += 1
                assert not any(mark in response.text for mark in ("acme", "secret-name"))
        assert asked >= 15
        async with service.with_key(first) as client:
            assert (await client.get(f"/v1/models/{model}")).json()["deploymentStage"] == "Deployed"
            assert (await client.get(f"/v1/files/{job['training_file']}")).status_code == 200


async def test_every_post_that_creates_or_bills_obeys_the_idempotency_key(service: Service) -> None:
    """A key that cannot be one is refused by name, before anything else is looked at but who asks."""
    counting = re.compile(r"(^|/)(de)?tokenize$|/token_counter$")
    for method, path in KEYED:
        if method == "POST" and not counting.search(path):
            response = await service.admin.post(
                concrete(path, account="acme", key="nothing"), json={}, headers={"Idempotency-Key": "x" * 256}
            )
            assert response.status_code == 400, path
            assert response.json()["error"]["param"] == "Idempotency-Key", path
