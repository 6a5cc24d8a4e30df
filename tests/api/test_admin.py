"""Administration over HTTP: accounts, credit, keys, the audit log; each over a real database."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.api.administration import Service, running_service
from tests.fakes import FakeGenerator

ACCOUNTS = "/v1/admin/accounts"
KEYS = "/v1/admin/keys"
GENERATE = "/v1/aitextgen/generate"


@pytest.fixture
async def service(sqlite_url: str) -> AsyncIterator[Service]:
    async with running_service(sqlite_url) as running:
        yield running


async def test_account_is_made_read_renamed_and_closed(service: Service) -> None:
    created = await service.admin.post(ACCOUNTS, json={"id": "new-1", "name": "New", "credit": 12.5})
    assert created.status_code == 201
    assert created.headers["location"] == f"{ACCOUNTS}/new-1"
    account = created.json()
    assert account == {
        "object": "account",
        "id": "new-1",
        "name": "New",
        "credit": 12.5,
        "reserved": 0,
        "created_at": account["created_at"],
        "closed_at": None,
    }
    assert (await service.admin.get(f"{ACCOUNTS}/new-1")).json() == account
    renamed = await service.admin.patch(f"{ACCOUNTS}/new-1", json={"name": "Newer"})
    assert renamed.json() == {**account, "name": "Newer"}
    key, _ = await service.new_key("new-1")
    closed = await service.admin.delete(f"{ACCOUNTS}/new-1")
    assert closed.json()["closed_at"] is not None
    async with service.with_key(key) as client:
        assert (await client.get("/v1/account")).status_code == 401


async def test_defaults_of_an_account(service: Service) -> None:
    account = (await service.admin.post(ACCOUNTS, json={})).json()
    assert account["id"].startswith("acct_")
    assert account["name"] == account["id"]
    assert account["credit"] is None


async def test_accounts_are_listed_in_pages(service: Service) -> None:
    for number in range(3):
        await service.admin.post(ACCOUNTS, json={"id": f"page-{number}"})
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        page = (await service.admin.get(ACCOUNTS, params=query)).json()
        seen += [account["id"] for account in page["data"]]
        assert page["has_more"] is (page["next"] is not None)
        if page["next"] is None:
            break
        assert len(page["data"]) == 2
        query["after"] = page["next"]
    assert seen == ["acme", "operator", "page-0", "page-1", "page-2"]


async def test_account_id_that_is_taken_is_409(service: Service) -> None:
    response = await service.admin.post(ACCOUNTS, json={"id": "acme"})
    assert response.status_code == 409


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"id": "a/b"}, "id"),
        ({"id": ""}, "id"),
        ({"name": ""}, "name"),
        ({"credit": "5"}, "credit"),
        ({"credit": 0.0000001}, "credit"),
        ({"owner": "x"}, "owner"),
    ],
)
async def test_bad_account_is_400_and_names_the_field(service: Service, body: dict[str, Any], param: str) -> None:
    response = await service.admin.post(ACCOUNTS, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


async def test_credit_is_granted_taken_back_and_unbound(service: Service) -> None:
    path = f"{ACCOUNTS}/acme/credits"
    assert (await service.admin.post(path, json={"amount": 100, "note": "first"})).json()["credit"] == 100
    assert (await service.admin.post(path, json={"amount": -0.25})).json()["credit"] == 99.75
    assert (await service.admin.post(path, json={"unlimited": True})).json()["credit"] is None
    for body in ({}, {"amount": 1, "unlimited": True}, {"amount": 1e12}, {"amount": True}):
        response = await service.admin.post(path, json=body)
        assert response.status_code == 400, body
        assert response.json()["error"]["param"] == "amount"


async def test_spent_credit_is_refused_in_the_documented_words(service: Service) -> None:
    await service.admin.post(f"{ACCOUNTS}/acme/credits", json={"amount": 150})
    body = {"length": 100}
    path = "/v1/models/standard/generate"
    assert (await service.client.post(path, json=body)).status_code == 200
    refused = await service.client.post(path, json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == "Out of generation credits"
    assert refused.json()["error"]["extensions"] == {"code": "OUT_OF_CREDITS"}
    assert (await service.client.get("/v1/account")).json()["credit"] == 50


async def test_key_is_made_and_works_and_its_text_is_shown_once(service: Service) -> None:
    created = await service.admin.post(f"{ACCOUNTS}/acme/keys", json={"name": "laptop"})
    assert created.status_code == 201
    key = created.json()
    text = key.pop("key")
    assert created.headers["location"] == f"{KEYS}/{key['id']}"
    assert key["scopes"] == ["inference"]
    assert key["models"] is key["budget"] is key["expires_at"] is None
    assert key["limits"] == {}
    shown = await service.admin.get(f"{KEYS}/{key['id']}")
    assert shown.json() == key
    assert text not in shown.text
    async with service.with_key(text) as client:
        assert (await client.post(GENERATE, json={"prompt": "x"})).status_code == 200


async def test_key_is_bounded_as_it_says(service: Service) -> None:
    limits = {"aitextgen": {"windows": [{"name": "minute", "quota": 2, "period_s": 60}], "max_concurrent": 4}}
    text, key_id = await service.new_key(
        "acme",
        models=["standard"],
        limits=limits,
        budget=10_000.5,
        expires_at="2099-01-01T00:00:00Z",
        scopes=["inference", "fine-tune"],
    )
    key = (await service.admin.get(f"{KEYS}/{key_id}")).json()
    assert key["models"] == ["test-org/test-model"]
    assert key["limits"]["aitextgen"]["windows"][0]["quota"] == 2
    assert key["budget"] == 10_000.5
    assert key["expires_at"] == "2099-01-01T00:00:00Z"
    assert key["scopes"] == ["fine-tune", "inference"]
    async with service.with_key(text) as client:
        statuses = [(await client.post(GENERATE, json={"prompt": "x"})).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
        other = await client.post(GENERATE, json={"prompt": "x", "model": "other-model"})
        assert other.status_code in (404, 429)
        listed = (await client.get("/v1/models")).json()["data"]
        assert {model["root"] for model in listed} == {"test-org/test-model"}
        assert (await client.get("/v1/models/other-model")).status_code == 404
        assert (await client.post("/v1/models/other-model/generate", json={"length": 10})).status_code == 404
        assert (await client.post("/v1/completions", json={"model": "other-model", "prompt": "x"})).status_code == 404


async def test_key_is_changed_field_by_field(service: Service) -> None:
    _, key_id = await service.new_key("acme", budget=5, models=["other-model"])
    path = f"{KEYS}/{key_id}"
    changed = (await service.admin.patch(path, json={"budget": 7})).json()
    assert (changed["budget"], changed["models"]) == (7, ["other-model"])
    changed = (await service.admin.patch(path, json={"budget": None, "models": None})).json()
    assert (changed["budget"], changed["models"]) == (None, None)
    limits = {"totalgpt": {"windows": [{"name": "tokens", "quota": 5, "period_s": 60, "counts": "tokens"}]}}
    changed = (await service.admin.patch(path, json={"limits": limits})).json()
    assert changed["limits"]["totalgpt"]["windows"][0]["counts"] == "tokens"
    assert (await service.admin.patch(path, json={})).json() == changed


async def test_key_is_rotated_with_an_overlap_and_revoked(service: Service) -> None:
    old, key_id = await service.new_key("acme")
    rotated = await service.admin.post(f"{KEYS}/{key_id}/rotate", json={"overlap_s": 3600})
    assert rotated.status_code == 201
    new = rotated.json()["key"]
    assert rotated.json()["id"] == key_id
    assert rotated.json()["old_secret_valid_until"] is not None
    for text in (old, new):
        async with service.with_key(text) as client:
            assert (await client.get("/v1/account")).status_code == 200
    revoked = await service.admin.delete(f"{KEYS}/{key_id}")
    assert revoked.json()["revoked_at"] is not None
    for text in (old, new):
        async with service.with_key(text) as client:
            assert (await client.get("/v1/account")).status_code == 401


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": "x", "scopes": ["everything"]}, "scopes[0]"),
        ({"name": "x", "scopes": []}, "scopes"),
        ({"name": "x", "models": ["nope"]}, "models"),
        ({"name": "x", "expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
        ({"name": "x", "expires_at": "soon"}, "expires_at"),
        ({"name": "x", "budget": -1}, "budget"),
        ({"name": "x", "limits": {"openai": {}}}, "limits.openai"),
        ({"name": "x", "limits": {"totalgpt": {"windows": [{"name": "a\nb", "quota": 1, "period_s": 1}]}}}, "limits"),
    ],
)
async def test_bad_key_is_400_and_names_the_field(service: Service, body: dict[str, Any], param: str) -> None:
    response = await service.admin.post(f"{ACCOUNTS}/acme/keys", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"{ACCOUNTS}/nobody"),
        ("PATCH", f"{ACCOUNTS}/nobody"),
        ("DELETE", f"{ACCOUNTS}/nobody"),
        ("POST", f"{ACCOUNTS}/nobody/credits"),
        ("POST", f"{ACCOUNTS}/nobody/keys"),
        ("GET", f"{KEYS}/nothing"),
        ("PATCH", f"{KEYS}/nothing"),
        ("DELETE", f"{KEYS}/nothing"),
        ("POST", f"{KEYS}/nothing/rotate"),
    ],
)
async def test_what_is_not_there_is_404(service: Service, method: str, path: str) -> None:
    assert (await service.admin.request(method, path, json={})).status_code == 404


async def test_key_of_a_closed_account_cannot_be_made(service: Service) -> None:
    await service.admin.delete(f"{ACCOUNTS}/acme")
    response = await service.admin.post(f"{ACCOUNTS}/acme/keys", json={"name": "late"})
    assert response.status_code in (404, 409)


async def test_keys_are_listed_by_account(service: Service) -> None:
    _, key_id = await service.new_key("operator")
    listed = (await service.admin.get(KEYS, params={"account": "operator"})).json()["data"]
    assert [key["account"] for key in listed] == ["operator", "operator"]
    assert key_id in {key["id"] for key in listed}
    assert len((await service.admin.get(KEYS)).json()["data"]) == 3


async def test_every_act_is_in_the_audit_log_with_its_actor(service: Service) -> None:
    _, key_id = await service.new_key("acme")
    await service.admin.post(f"{ACCOUNTS}/acme/credits", json={"amount": 2.5, "note": "why"})
    page = (await service.admin.get("/v1/admin/audit", params={"limit": 2})).json()
    grant, created = page["data"]
    assert (grant["action"], grant["target"]) == ("account.grant", "acme")
    assert grant["details"]["amount"] == 2.5
    assert grant["details"]["note"] == "why"
    assert (created["action"], created["target"]) == ("key.create", key_id)
    own_id = (await service.admin.get("/v1/account")).json()["key"]["id"]
    assert grant["actor"] == created["actor"] == own_id
    assert page["has_more"] is True
    rest = (await service.admin.get("/v1/admin/audit", params={"after": page["next"]})).json()
    assert all(row["id"] < created["id"] for row in rest["data"])


async def test_key_made_twice_under_one_idempotency_key_is_one_key(service: Service) -> None:
    headers = {"Idempotency-Key": "make-1"}
    answers = [await service.admin.post(f"{ACCOUNTS}/acme/keys", json={"name": "x"}, headers=headers) for _ in range(2)]
    assert answers[0].json() == answers[1].json()
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[1].headers["location"] == answers[0].headers["location"]
    assert len((await service.admin.get(KEYS, params={"account": "acme"})).json()["data"]) == 2


async def test_grant_sent_twice_under_one_idempotency_key_is_one_grant(service: Service) -> None:
    headers = {"Idempotency-Key": "grant-1"}
    for _ in range(2):
        await service.admin.post(f"{ACCOUNTS}/acme/credits", json={"amount": 10}, headers=headers)
    assert (await service.admin.get(f"{ACCOUNTS}/acme")).json()["credit"] == 10


async def test_administration_counts_in_no_window(service: Service) -> None:
    for _ in range(3):
        response = await service.admin.post(ACCOUNTS, json={"id": "a/b"})
        assert "ratelimit" not in response.headers
    windows = (await service.admin.get("/v1/account")).json()["windows"]
    assert [window["remaining"] for window in windows["aitextgen"]] == [100, 5000]


async def test_replayed_generation_is_billed_once(sqlite_url: str) -> None:
    generator = FakeGenerator()
    async with running_service(sqlite_url, generator=generator) as service:
        headers = {"Idempotency-Key": "once"}
        for _ in range(3):
            await service.client.post("/v1/completions", json={"model": "standard", "prompt": "x"}, headers=headers)
        [used] = (await service.client.get("/v1/usage")).json()["data"]
        assert used["requests"] == 1
        assert len(generator.requests) == 1


async def test_counts_credit_and_kept_answers_outlive_the_process(sqlite_url: str) -> None:
    headers = {"Idempotency-Key": "once"}
    async with running_service(sqlite_url) as service:
        key = service.client_key
        await service.admin.post(f"{ACCOUNTS}/acme/credits", json={"amount": 1000})
        first = await service.client.post(GENERATE, json={"prompt": "x"}, headers=headers)
        credit = (await service.client.get("/v1/account")).json()["credit"]
        assert credit < 1000
    async with running_service(sqlite_url) as service, service.with_key(key) as client:
        account = (await client.get("/v1/account")).json()
        assert account["credit"] == credit
        assert [window["remaining"] for window in account["windows"]["aitextgen"]] == [99, 4999]
        again = await client.post(GENERATE, json={"prompt": "x"}, headers=headers)
        assert again.content == first.content
        assert (await client.get("/v1/account")).json()["credit"] == credit
