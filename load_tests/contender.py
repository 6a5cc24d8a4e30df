"""What is measured: how one is started, and what every started one can do. Knows none of them."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from load_tests.processes import Program
from load_tests.records import Sample

IN_PROCESS = ", engine in process"
"""The engine alone of a contender has its title with this after it."""


class Started(Protocol):
    """A contender that has generated its first token, `first_token_s` after its process was started."""

    @property
    def program(self) -> Program: ...

    @property
    def first_token_s(self) -> float: ...

    def generate(self, prompts: Sequence[str], *, concurrency: int, max_tokens: int) -> tuple[float, list[Sample]]:
        """Continues every prompt, with so many clients: the seconds that all of it took, and each one's times."""

    def prefill(self, num_prompt_tokens: int, repeats: int) -> list[float]:
        """Seconds from a prompt of so many tokens to its first new one; empty where that is not measured."""


@dataclass(frozen=True, slots=True)
class Contender:
    """`title` names it in tables. `start` takes the number of clients that it shall be made ready for.

    `missing` says how to get it where it is not installed, and nothing where it is.
    `restarts`: it is started anew for every number of clients, because its settings have to fit them.
    `reuses_prompts`: it is to be measured how much sooner a prompt is answered that begins like an earlier one.
    `slow`: its start and its cells take minutes, so by default it is measured in the first round only.
    """

    title: str
    start: Callable[[int], AbstractContextManager[Started]]
    missing: Callable[[], str]
    versions: Callable[[], dict[str, str]]
    restarts: bool = False
    reuses_prompts: bool = False
    slow: bool = False


def install_hint(peer: str) -> str:
    return f"{peer} is not installed; to get it: make peers PEERS={peer}"
