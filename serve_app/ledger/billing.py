"""What an answer costs, in whole microcredits. Pure; the prices of each dialect stand in the configuration."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

from serve_app.config import BillingConfig
from serve_app.ledger.credits import MICROCREDITS
from serve_app.ledger.entries import Counts, Outcome


class Price(Protocol):
    """Never decreases where counts grow, and is highest for a completed answer."""

    def cost(self, counts: Counts, outcome: Outcome) -> int:
        """Microcredits, for what was delivered."""


@dataclass(frozen=True, slots=True)
class TokenPrice:
    """Microcredits for each token of the prompts and of the answer."""

    prompt_token: int
    completion_token: int

    def cost(self, counts: Counts, outcome: Outcome) -> int:
        del outcome
        return self.prompt_token * counts.prompt_tokens + self.completion_token * counts.completion_tokens


@dataclass(frozen=True, slots=True)
class CharacterPrice:
    """Microcredits for each generated code point, and for how many an answer counts at least.

    An answer that failed before anything was delivered costs nothing; an empty one that is complete costs the minimum.
    """

    character: int
    minimum_characters: int

    def cost(self, counts: Counts, outcome: Outcome) -> int:
        if counts.characters == 0 and outcome is not Outcome.COMPLETED:
            return 0
        return self.character * max(self.minimum_characters, counts.characters)


def hold(price: Price, most: Counts) -> int:
    """The most that an answer of at most these counts can cost."""
    return price.cost(most, Outcome.COMPLETED)


def make_prices(config: BillingConfig) -> Mapping[str, Price]:
    """The prices by the name of the dialect."""
    return {
        "aitextgen": TokenPrice(
            microcredits(config.aitextgen.prompt_token), microcredits(config.aitextgen.completion_token)
        ),
        "inferkit": CharacterPrice(microcredits(config.inferkit.character), config.inferkit.minimum_characters),
        "totalgpt": TokenPrice(
            microcredits(config.totalgpt.prompt_token), microcredits(config.totalgpt.completion_token)
        ),
    }


def microcredits(credits: Decimal) -> int:
    """Raises ValueError for an amount with more than six places."""
    amount = credits * MICROCREDITS
    if amount != int(amount):
        raise ValueError(f"{credits} credits have more than six decimal places")
    return int(amount)
