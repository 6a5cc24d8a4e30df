"""What answers cost: exact, never above what is held for them, InferKit's minimum."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from serve_app.config import BillingConfig
from serve_app.ledger.billing import CharacterPrice, Price, TokenPrice, hold, make_prices, microcredits
from serve_app.ledger.entries import Counts, Outcome

CHARACTERS = CharacterPrice(character=1_000_000, minimum_characters=100)
TOKENS = TokenPrice(prompt_token=1_000_000, completion_token=4_000_000)

counts = st.builds(Counts, st.integers(0, 10**5), st.integers(0, 10**5), st.integers(0, 10**5))
prices: st.SearchStrategy[Price] = st.one_of(
    st.builds(TokenPrice, st.integers(0, 10**9), st.integers(0, 10**9)),
    st.builds(CharacterPrice, st.integers(0, 10**9), st.integers(0, 1000)),
)


def test_tokens_cost_what_was_delivered() -> None:
    assert TOKENS.cost(Counts(10, 5, 99), Outcome.CANCELLED) == 30_000_000


@pytest.mark.parametrize(
    ("characters", "outcome", "billed"),
    [
        (0, Outcome.COMPLETED, 100),
        (99, Outcome.COMPLETED, 100),
        (101, Outcome.COMPLETED, 101),
        (1, Outcome.CANCELLED, 100),
        (250, Outcome.LOST, 250),
        (0, Outcome.FAILED, 0),
        (0, Outcome.CANCELLED, 0),
        (0, Outcome.LOST, 0),
    ],
)
def test_characters_have_a_minimum_once_anything_was_delivered(characters: int, outcome: Outcome, billed: int) -> None:
    assert CHARACTERS.cost(Counts(50, 7, characters), outcome) == billed * 1_000_000


@given(price=prices, most=counts, delivered=counts, outcome=st.sampled_from(Outcome))
def test_nothing_costs_more_than_was_held_for_it(
    price: Price, most: Counts, delivered: Counts, outcome: Outcome
) -> None:
    delivered = Counts(*(min(getattr(most, name), getattr(delivered, name)) for name in Counts.__slots__))
    assert 0 <= price.cost(delivered, outcome) <= hold(price, most)


def test_configured_prices_are_whole_microcredits() -> None:
    config = BillingConfig.model_validate({"totalgpt": {"prompt_token": "0.000001", "completion_token": 0.1}})
    assert make_prices(config)["totalgpt"] == TokenPrice(1, 100_000)
    assert make_prices(config)["aitextgen"] == TOKENS
    assert make_prices(config)["inferkit"] == CHARACTERS
    with pytest.raises(ValidationError):
        BillingConfig.model_validate({"totalgpt": {"prompt_token": "0.0000001"}})
    with pytest.raises(ValueError, match="six"):
        microcredits(Decimal("0.0000001"))
