"""Usage, ledger and audit log by the command line: in columns, as CSV and as JSON lines."""

import asyncio
import csv
import io
import json
from pathlib import Path

import pytest
from sqlalchemy import insert

from serve_app.stores.database import open_database
from serve_app.stores.tables import ledger, usage_by_day
from tests.unit.cli.conftest import Command

SUMS = {"prompt_tokens": 10, "completion_tokens": 20, "characters": 30, "cost": 1_500_000}
NUM_LINES = 1200


@pytest.fixture(autouse=True)
def used(tritext: Command, home: Path) -> None:
    tritext("accounts", "create", "acme")
    asyncio.run(fill(f"sqlite:///{home / 'tritext.db'}"))


async def fill(url: str) -> None:
    place = {"dialect": "totalgpt", "model": "small", **SUMS}
    days = [
        {"day": day, "account": account, "key_id": f"key-of-{account}", "requests": 1, **place}
        for day in ("2026-01-30", "2026-01-31", "2026-02-01")
        for account in ("acme", "other")
    ]
    lines = [
        {
            "id": f"request-{number}",
            "account": "acme" if number % 2 else "other",
            "key_id": "key",
            "created_at": 1_767_225_600.0 + number,  # 2026-01-01
            "settled_at": 1_767_225_601.0 + number,
            "held": 2_000_000,
            "held_tokens": 0,
            "outcome": "completed",
            **place,
        }
        for number in range(NUM_LINES)
    ]
    async with open_database(url) as database, database.write() as connection:
        await connection.execute(insert(usage_by_day), days)
        await connection.execute(insert(ledger), lines)


def test_usage_is_a_table_by_day_and_account(tritext: Command) -> None:
    lines = tritext("usage").out.splitlines()
    assert lines[0].split() == [
        "day", "account", "requests", "prompt_tokens", "completion_tokens", "characters", "cost"
    ]  # fmt: skip
    assert lines[1].split() == ["2026-01-30", "acme", "1", "10", "20", "30", "1.5"]
    assert len(lines) == 7


def test_usage_is_filtered_and_grouped(tritext: Command) -> None:
    out = tritext("usage", "--by", "account", "--from", "2026-01-31", "--account", "acme", "--jsonl").out
    assert [json.loads(line) for line in out.splitlines()] == [
        {
            "account": "acme",
            "requests": 2,
            "prompt_tokens": 20,
            "completion_tokens": 40,
            "characters": 60,
            "cost": "3",
        }
    ]


def test_usage_as_csv(tritext: Command) -> None:
    rows = list(csv.DictReader(io.StringIO(tritext("usage", "--by", "day", "--to", "2026-01-31", "--csv").out)))
    assert [(row["day"], row["requests"], row["cost"]) for row in rows] == [
        ("2026-01-30", "2", "3"),
        ("2026-01-31", "2", "3"),
    ]


def test_the_ledger_is_exported_whole(tritext: Command) -> None:
    rows = list(csv.DictReader(io.StringIO(tritext("ledger", "--csv").out)))
    lines = [json.loads(line) for line in tritext("ledger", "--jsonl").out.splitlines()]
    assert [row["id"] for row in rows] == [f"request-{number}" for number in range(NUM_LINES)]
    assert [row["id"] for row in rows] == [line["id"] for line in lines]
    assert lines[0] == {
        "id": "request-0",
        "account": "other",
        "key": "key",
        "dialect": "totalgpt",
        "model": "small",
        "created_at": "2026-01-01T00:00:00+00:00",
        "settled_at": "2026-01-01T00:00:01+00:00",
        "held": "2",
        "prompt_tokens": 10,
        "completion_tokens": 20,
        "characters": 30,
        "cost": "1.5",
        "outcome": "completed",
    }


def test_the_ledger_is_filtered_by_time_and_account(tritext: Command) -> None:
    span = ("--from", "2026-01-01T00:00:10", "--to", "2026-01-01T00:00:14")
    out = tritext("ledger", *span, "--account", "acme", "--jsonl").out
    assert [json.loads(line)["id"] for line in out.splitlines()] == ["request-11", "request-13"]


def test_the_audit_log_tells_what_the_command_line_did(tritext: Command) -> None:
    tritext("accounts", "credit", "acme", "5", "--note", "invoice 17")
    rows = [json.loads(line) for line in tritext("audit", "--jsonl").out.splitlines()]
    assert [(row["actor"], row["action"], row["target"]) for row in rows] == [
        ("command line", "account.grant", "acme"),
        ("command line", "account.create", "acme"),
    ]
    assert rows[0]["details"] == {"amount": 5_000_000, "note": "invoice 17"}
    assert tritext("audit", "--limit", "1").out.splitlines()[1].split()[2:5] == ["command", "line", "account.grant"]


@pytest.mark.parametrize("command", ["usage", "ledger", "audit"])
def test_nothing_is_a_table_without_rows(tritext: Command, command: str) -> None:
    nothing = ("--before", "1") if command == "audit" else ("--account", "nobody")
    assert len(tritext(command, *nothing).out.splitlines()) == 1
