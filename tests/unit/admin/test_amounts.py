"""Credits on the wire are the microcredits inside, to the last one."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.errors import InvalidParameter
from serve_app.admin.amounts import to_credits, to_microcredits
from serve_app.ledger.credits import spell_credits


@pytest.mark.parametrize(
    ("credits", "microcredits"),
    [
        (0, 0),
        (1, 1_000_000),
        (0.1, 100_000),
        (1e-6, 1),
        (-2.5, -2_500_000),
        (25000.000001, 25_000_000_001),
        (1e3, 10**9),
    ],
)
def test_numbers_are_taken_exactly(credits: float, microcredits: int) -> None:
    assert to_microcredits(credits, "amount") == microcredits


@pytest.mark.parametrize("credits", [1e-7, 0.1234567, 1.0000001])
def test_more_than_six_places_are_refused(credits: float) -> None:
    with pytest.raises(InvalidParameter) as refusal:
        to_microcredits(credits, "budget")
    assert refusal.value.param == "budget"


def test_none_is_no_amount() -> None:
    assert to_microcredits(None, "credit") is None
    assert to_credits(None) is None


@given(st.integers(-(10**15), 10**15))
def test_amounts_survive_the_way_out_and_in(microcredits: int) -> None:
    credits = to_credits(microcredits)
    assert to_microcredits(credits, "amount") == microcredits
    assert isinstance(credits, int) is (microcredits % 1_000_000 == 0)


@given(st.integers(-(10**18), 10**18))
def test_spelled_amounts_are_exact_and_plain(microcredits: int) -> None:
    spelled = spell_credits(microcredits)
    assert Decimal(spelled) * 1_000_000 == microcredits
    assert "E" not in spelled
