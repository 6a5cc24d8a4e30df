"""Accounts, keys, limits and the ledger through the whole service, as its operator and its users see them."""

import csv
import io
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.integration.service import MODEL, Service, wait_until

pytestmark = pytest.mark.timeout(400)

LIMITS = {"totalgpt": {"windows": [{"name": "hour", "quota": 5, "period_s": 3600}]}}
BODY = {"model": MODEL, "prompt": "Hello", "max_tokens": 4, "temperature": 0}


@pytest.fixture
def admin(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, headers=service.headers, timeout=120) as client:
        yield client


@pytest.fixture
def account(admin: httpx.Client) -> str:
    """A new account with credit for little."""
    created = admin.post("/v1/admin/accounts", json={"name": "user", "credit": 1000})
    assert created.status_code == 201, created.text
    return str(created.json()["id"])


@pytest.fixture
def key(admin: httpx.Client, account: str) -> dict[str, Any]:
    created = admin.post(f"/v1/admin/accounts/{account}/keys", json={"name": "key", "limits": LIMITS})
    assert created.status_code == 201, created.text
    answer: dict[str, Any] = created.json()
    return answer


@pytest.fixture
def user(service: Service, key: dict[str, Any]) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {key['key']}"}
    with httpx.Client(base_url=service.url, headers=headers, timeout=120) as client:
        yield client


def test_user_is_limited_charged_and_told(admin: httpx.Client, user: httpx.Client, account: str) -> None:
    whole = user.post("/v1/completions", json=BODY)
    assert whole.headers["ratelimit-policy"] == '"hour";q=5;w=3600'
    assert whole.headers["x-ratelimit-remaining-requests"] == "4"
    streamed = [
        user.post("/v1/completions", json={**BODY, "stream": True}, headers={"Idempotency-Key": "again"})
        for _ in range(2)
    ]
    assert streamed[0].headers["x-ratelimit-remaining"] == "3"
    assert streamed[0].content == streamed[1].content
    assert streamed[1].headers["idempotent-replayed"] == "true"
    assert user.post("/v1/completions", json={**BODY, "n": "x"}).status_code == 400
    poor = user.post("/v1/completions", json={**BODY, "max_tokens": 2000})
    assert poor.json()["error"]["message"] == "Out of generation credits"
    refused = user.post("/v1/completions", json=BODY)
    assert refused.status_code == 429
    assert 3500 < int(refused.headers["retry-after"]) <= 3600

    usage = whole.json()["usage"]
    cost = usage["prompt_tokens"] + 4 * usage["completion_tokens"]
    assert user.get("/v1/account").json()["credit"] == 1000 - 2 * cost
    exported = admin.get("/v1/admin/ledger", params={"account": account, "format": "csv"}).text
    lines = list(csv.DictReader(io.StringIO(exported)))
    assert [(line["outcome"], line["cost"]) for line in lines] == [("completed", str(cost))] * 2
    [used] = user.get("/v1/usage", params={"group_by": "account"}).json()["data"]
    assert (used["requests"], used["cost"]) == (2, 2 * cost)


def test_user_administers_nothing(user: httpx.Client) -> None:
    assert user.get("/v1/admin/accounts").status_code == 403


def test_revoked_key_is_refused(admin: httpx.Client, user: httpx.Client, key: dict[str, Any]) -> None:
    """How soon, the unit tests of the keys tell by a clock of their own."""
    assert user.get("/v1/account").status_code == 200
    assert admin.delete(f"/v1/admin/keys/{key['id']}").status_code == 200
    wait_until(lambda: user.get("/v1/account").status_code == 401, timeout_s=60, what="refused")
