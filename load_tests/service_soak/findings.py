"""What the clients of a soak have met. Knows no HTTP."""

import random
from collections import Counter
from dataclasses import dataclass, field
from secrets import token_hex

from load_tests.service_soak.exchange import Exchange

_MAX_PROBLEMS = 1000


@dataclass
class Findings:
    """`exchanges` since the beginning, `problems` in words, `answers` by kind and HTTP status, `first_s` since the last
    `take_first_s`. `texts`: what the first request of its kind was answered, which every later one must be."""

    exchanges: list[Exchange] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    first_s: list[float] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    num_repeated: int = 0

    def begin(self, kind: str) -> Exchange:
        exchange = Exchange(token_hex(8), kind)
        self.exchanges.append(exchange)
        return exchange

    def problem(self, text: str) -> None:
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(text[:500])

    def repeated(self, name: str, text: str) -> None:
        """A text that is a function of the request; tells a problem where the same request gave another one."""
        self.num_repeated += 1
        if self.texts.setdefault(name, text) != text:
            self.problem(f"{name}: the same request with the same seed was answered otherwise than the first time")

    def take_first_s(self) -> list[float]:
        taken, self.first_s = self.first_s, []
        return taken

    @property
    def num_faults(self) -> int:
        """Answers with 5xx."""
        return sum(count for (_, status), count in self.answers.items() if status >= 500)


def choice(rng: random.Random, weights: dict[str, int]) -> str:
    [chosen] = rng.choices(list(weights), list(weights.values()))
    return chosen
