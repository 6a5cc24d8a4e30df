"""Accounts by the command line: made, listed, credited, closed."""

import json

import pytest

from tests.unit.cli.conftest import Command


def test_an_account_is_made_with_credit(tritext: Command) -> None:
    made = json.loads(tritext("accounts", "create", "acme", "--name", "Acme Ltd.", "--credit", "25.5", "--json").out)
    assert {name: made[name] for name in ("id", "name", "credit", "reserved", "closed_at")} == {
        "id": "acme",
        "name": "Acme Ltd.",
        "credit": "25.5",
        "reserved": "0",
        "closed_at": None,
    }
    assert json.loads(tritext("accounts", "list", "--json").out) == [made]


def test_accounts_are_listed_in_columns(tritext: Command) -> None:
    for account in ("longer-name", "acme"):
        tritext("accounts", "create", account)
    lines = tritext("accounts", "list").out.splitlines()
    assert [line.split()[0] for line in lines] == ["id", "acme", "longer-name"]
    assert len({line.index(word) for line, word in zip(lines[1:], ("acme", "longer"), strict=True)}) == 1
    assert lines[1].split()[2] == "-"


@pytest.mark.parametrize(
    ("arguments", "credit"),
    [
        (("10", "--note", "invoice 17"), "10"),
        (("0.000001",), "0.000001"),
        (("-3.25",), "-3.25"),
        (("--unlimited",), None),
    ],
)
def test_credit_is_added_taken_back_or_unbounded(
    tritext: Command, arguments: tuple[str, ...], credit: str | None
) -> None:
    tritext("accounts", "create", "acme")
    result = tritext("accounts", "credit", "acme", *arguments, "--json")
    assert json.loads(result.out)["credit"] == credit


def test_a_closed_account_says_when_and_gets_no_keys(tritext: Command) -> None:
    tritext("accounts", "create", "acme")
    assert tritext("accounts", "rename", "acme", "Acme Ltd.").status == 0
    assert json.loads(tritext("accounts", "close", "acme", "--json").out)["closed_at"] is not None
    refused = tritext("keys", "create", "--account", "acme")
    assert refused.status == 1
    assert "closed" in refused.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("create", "a/b"), "an account's id"),
        (("create", "acme", "--credit", "1e-9"), "six decimal places"),
        (("create", "acme", "--credit", "NaN"), "six decimal places"),
        (("credit", "default"), "amount of credits or --unlimited"),
        (("credit", "default", "5", "--unlimited"), "amount of credits or --unlimited"),
        (("credit", "nobody", "5"), "no account 'nobody'"),
        (("credit", "default", "1e30"), "at most"),
        (("close", "nobody"), "no account 'nobody'"),
    ],
)
def test_what_goes_wrong_is_told_in_a_sentence(tritext: Command, arguments: tuple[str, ...], words: str) -> None:
    tritext("accounts", "create", "default")
    result = tritext("accounts", *arguments)
    assert result.status == 1
    assert result.out == ""
    assert words in result.err
    assert len(result.err.splitlines()) == 1
