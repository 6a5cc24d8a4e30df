"""What keys may do, by the command line: scopes, models, budgets, limits, new secrets."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.errors import InvalidParameter
from serve_app.cli.key_limits import parse_window, with_limits
from serve_app.cli.options import to_microcredits
from serve_app.ledger.credits import spell_credits
from serve_app.use_cases.callers import Dialect, KeyLimits, Window
from serve_app.use_cases.key_records import KeyGrant
from tests.unit.cli.conftest import Command


def create(tritext: Command, *arguments: str) -> Any:
    return json.loads(tritext("keys", "create", *arguments, "--json").out)


def test_a_key_is_made_with_scopes_models_and_a_budget(tritext: Command) -> None:
    made = create(tritext, "--scope", "admin", "--scope", "inference", "--model", "standard", "--budget", "12.5")
    assert made["scopes"] == ["admin", "inference"]
    assert made["models"] == ["test-model"]
    assert made["budget"] == "12.5"


def test_a_change_leaves_what_it_does_not_name(tritext: Command) -> None:
    key = create(tritext, "--model", "test-model", "--budget", "5")["id"]
    changed = json.loads(tritext("keys", "change", key, "--scope", "fine-tune", "--json").out)
    assert (changed["scopes"], changed["models"], changed["budget"]) == (["fine-tune"], ["test-model"], "5")
    changed = json.loads(tritext("keys", "change", key, "--all-models", "--no-budget", "--json").out)
    assert (changed["scopes"], changed["models"], changed["budget"]) == (["fine-tune"], None, None)


def test_limits_are_set_for_one_api_and_taken_away(tritext: Command) -> None:
    key = create(tritext)["id"]
    own = ("--window", "minute=100/60", "--window", "day=5000000/86400:tokens", "--max-concurrent", "4")
    tritext("keys", "limits", key, "--dialect", "inferkit")
    limited = json.loads(tritext("keys", "limits", key, "--dialect", "totalgpt", *own, "--json").out)["limits"]
    assert limited == {
        "inferkit": {"windows": [], "max_concurrent": None},
        "totalgpt": {
            "windows": [
                {"name": "minute", "quota": 100, "period_s": 60.0, "counts": "requests"},
                {"name": "day", "quota": 5000000, "period_s": 86400.0, "counts": "tokens"},
            ],
            "max_concurrent": 4,
        },
    }
    freed = json.loads(tritext("keys", "limits", key, "--dialect", "totalgpt", "--configured", "--json").out)["limits"]
    assert list(freed) == ["inferkit"]
    assert "own limits for inferkit" in tritext("keys", "list").out


def test_a_rotated_key_is_printed_once(tritext: Command) -> None:
    made = create(tritext)
    rotated = tritext("keys", "rotate", made["id"])
    assert rotated.out.startswith(f"tt_{made['id']}_")
    assert rotated.out.strip() != made["key"]
    assert "not shown again" in rotated.err
    assert json.loads(tritext("keys", "list", "--json").out)[0]["old_secret_valid_until"] is not None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("create", "--account", "nobody"), "no account 'nobody'"),
        (("create", "--model", "nothing"), "does not exist"),
        (("create", "--budget", "-1"), "budget must be"),
        (("change", "nothing"), "no key with the id"),
        (("rotate", "nothing"), "no key with the id"),
        (("limits", "nothing", "--dialect", "totalgpt", "--window", "minute"), "no window such as"),
        (("limits", "nothing", "--dialect", "totalgpt"), "no key with the id"),
    ],
)
def test_what_goes_wrong_is_told_in_a_sentence(tritext: Command, arguments: tuple[str, ...], words: str) -> None:
    create(tritext)
    result = tritext("keys", *arguments)
    assert result.status == 1
    assert result.out == ""
    assert words in result.err


@pytest.mark.parametrize("bad", ["", "minute", "minute=1", "minute=1/", "=1/60", "a b=1/60", "m=-1/60", "m=1/60:bytes"])
def test_a_window_that_means_nothing_is_refused(bad: str) -> None:
    with pytest.raises(InvalidParameter):
        parse_window(bad)


@given(st.dictionaries(st.sampled_from(Dialect), st.integers(0, 9)), st.sampled_from(Dialect))
def test_limits_of_other_apis_stay(present: dict[Dialect, int], changed: Dialect) -> None:
    own = {dialect: KeyLimits((Window("minute", quota, 60),)) for dialect, quota in present.items()}
    grant = KeyGrant(limits=tuple(own.items()))
    assert dict(with_limits(grant, changed, KeyLimits()).limits) == {**own, changed: KeyLimits()}
    assert dict(with_limits(grant, changed, None).limits) == {d: o for d, o in own.items() if d is not changed}


@given(st.integers(-(10**18), 10**18))
def test_amounts_come_back_as_they_were(microcredits: int) -> None:
    assert to_microcredits(spell_credits(microcredits)) == microcredits


def test_amounts_have_no_needless_digits() -> None:
    assert [spell_credits(amount) for amount in (0, 10_000_000, -1, 1_500_000)] == ["0", "10", "-0.000001", "1.5"]
