"""Usage and the ledger over HTTP: sums, pages, JSON lines and CSV, and what a key sees of its own account."""

import csv
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.api.administration import Service, running_service

USAGE = "/v1/admin/usage"
LEDGER = "/v1/admin/ledger"
NOBODY = "0" * 17


@pytest.fixture
async def service(sqlite_url: str) -> AsyncIterator[Service]:
    """After two completions and a text of InferKit by `acme`, and one of AITextGen by `operator`."""
    async with running_service(sqlite_url) as running:
        for _ in range(2):
            body = {"model": "standard", "prompt": "abc", "max_tokens": 5}
            assert (await running.client.post("/v1/completions", json=body)).status_code == 200
        assert (await running.client.post("/v1/models/other-model/generate", json={"length": 10})).status_code == 200
        assert (await running.admin.post("/v1/aitextgen/generate", json={"prompt": "ab"})).status_code == 200
        yield running


async def all_pages(service: Service, path: str, **query: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        page = (await service.admin.get(path, params=query)).json()
        found += page["data"]
        if page["next"] is None:
            return found
        query["after"] = page["next"]


async def test_usage_is_what_the_answers_said(service: Service) -> None:
    sums = (await service.admin.get(USAGE, params={"group_by": "account,dialect,model"})).json()["data"]
    assert [(row["account"], row["dialect"], row["model"], row["requests"]) for row in sums] == [
        ("acme", "inferkit", "other-model", 1),
        ("acme", "totalgpt", "test-org/test-model", 2),
        ("operator", "aitextgen", "test-org/test-model", 1),
    ]
    inferkit, totalgpt, _ = sums
    assert (inferkit["characters"], inferkit["cost"]) == (10, 100)
    assert (totalgpt["prompt_tokens"], totalgpt["completion_tokens"]) == (6, 10)
    assert totalgpt["cost"] == 6 * 1 + 10 * 4


@pytest.mark.parametrize("limit", [1, 2, 100])
@pytest.mark.parametrize("path", [USAGE, LEDGER])
async def test_pages_hold_everything_once_in_order(service: Service, path: str, limit: int) -> None:
    whole = await all_pages(service, path)
    assert len(whole) == (3 if path == USAGE else 4)
    assert await all_pages(service, path, limit=limit) == whole


async def test_ledger_has_a_line_for_each_request(service: Service) -> None:
    lines = (await service.admin.get(LEDGER)).json()["data"]
    assert [line["dialect"] for line in lines] == ["totalgpt", "totalgpt", "inferkit", "aitextgen"]
    assert all(line["outcome"] == "completed" and line["settled_at"] for line in lines)
    assert lines[0]["cost"] == 23
    assert lines[0]["held"] >= lines[0]["cost"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"account": "acme"}, 3),
        ({"account": "nobody"}, 0),
        ({"dialect": "totalgpt"}, 2),
        ({"model": "other-model"}, 1),
        ({"key": NOBODY}, 0),
        ({"since": "2001-01-01T00:00:00Z"}, 4),
        ({"until": "2001-01-01T00:00:00Z"}, 0),
    ],
)
async def test_ledger_is_filtered(service: Service, query: dict[str, str], expected: int) -> None:
    assert len((await service.admin.get(LEDGER, params=query)).json()["data"]) == expected


@pytest.mark.parametrize(("path", "num_rows"), [(USAGE, 3), (LEDGER, 4)])
async def test_exports_hold_what_the_pages_hold(service: Service, path: str, num_rows: int) -> None:
    objects = (await service.admin.get(path)).json()["data"]
    lines = await service.admin.get(path, params={"format": "jsonl"})
    assert lines.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line) for line in lines.text.splitlines()] == objects
    table = await service.admin.get(path, params={"format": "csv"})
    assert table.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(table.text)))
    assert len(rows) == num_rows
    for row, expected in zip(rows, objects, strict=True):
        assert set(row) == set(expected)
        assert {name: str(value) for name, value in expected.items()} == row


async def test_empty_exports(service: Service) -> None:
    query = {"account": "nobody"}
    assert (await service.admin.get(LEDGER, params={**query, "format": "jsonl"})).content == b""
    assert (await service.admin.get(LEDGER, params={**query, "format": "csv"})).text.startswith("id,account,key")


@pytest.mark.parametrize(
    ("path", "query", "param"),
    [
        (USAGE, {"group_by": "day,hour"}, "group_by"),
        (USAGE, {"group_by": "day,day"}, "group_by"),
        (USAGE, {"first_day": "yesterday"}, "first_day"),
        (USAGE, {"after": "nonsense"}, "after"),
        (USAGE, {"after": "é"}, "after"),
        (LEDGER, {"after": "W10"}, "after"),
        (LEDGER, {"since": "2026-01-01"}, "since"),
        (LEDGER, {"format": "xml"}, "format"),
        (LEDGER, {"limit": "0"}, "limit"),
        (LEDGER, {"limit": "1001"}, "limit"),
        (LEDGER, {"sort": "up"}, "sort"),
        (LEDGER, {"dialect": "openai"}, "dialect"),
    ],
)
async def test_bad_query_is_400_and_names_the_parameter(
    service: Service, path: str, query: dict[str, str], param: str
) -> None:
    response = await service.admin.get(path, params=query)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


async def test_key_sees_its_own_account(service: Service) -> None:
    account = (await service.client.get("/v1/account")).json()
    assert (account["id"], account["credit"]) == ("acme", None)
    assert account["key"]["account"] == "acme"
    assert account["key"]["spent"] == 2 * 23 + 100
    minute, day = account["windows"]["aitextgen"]
    assert (minute["name"], minute["quota"], minute["remaining"]) == ("minute", 100, 100)
    assert (day["name"], day["quota"]) == ("day", 5000)
    assert account["windows"]["totalgpt"] == []
    own = (await service.admin.get("/v1/account")).json()["windows"]["aitextgen"]
    assert [window["remaining"] for window in own] == [99, 4999]


async def test_key_sees_its_own_usage_only(service: Service) -> None:
    sums = (await service.client.get("/v1/usage")).json()["data"]
    assert {row["account"] for row in sums} == {"acme"}
    assert sum(row["requests"] for row in sums) == 3
    csv_text = (await service.client.get("/v1/usage", params={"format": "csv"})).text
    assert "operator" not in csv_text
    response = await service.client.get("/v1/usage", params={"account": "operator"})
    assert response.status_code == 400


async def test_keys_of_other_accounts_are_not_there(service: Service) -> None:
    own = (await service.client.get("/v1/account")).json()["key"]["id"]
    other = (await service.admin.get("/v1/account")).json()["key"]["id"]
    assert (await service.client.get("/v1/usage", params={"key": own})).status_code == 200
    foreign = await service.client.get("/v1/usage", params={"key": other})
    missing = await service.client.get("/v1/usage", params={"key": NOBODY})
    assert foreign.status_code == missing.status_code == 404
    assert foreign.json()["error"]["message"].replace(other, NOBODY) == missing.json()["error"]["message"]
