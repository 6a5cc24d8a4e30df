"""The values of the ledger: what was delivered, lines, and what can be asked of it. Pure."""

from dataclasses import dataclass
from enum import StrEnum

from serve_app.limits.windows import Window, WindowStanding


class Outcome(StrEnum):
    """How a request ended. COMPLETED: its whole answer was there to be sent. CANCELLED: the client went away or the
    time was up. FAILED: an error ended it. LOST: the process that worked on it died."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Counts:
    """An amount of text: tokens of prompts, generated tokens, generated code points."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    characters: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.characters + other.characters,
        )


@dataclass(frozen=True, slots=True)
class Line:
    """One request in the ledger, from its admission on. `held` microcredits and `held_tokens` are the most that it can
    come to. created_at: seconds since 1970."""

    id: str
    account: str
    key_id: str
    dialect: str
    model: str
    owner: str
    held: int
    held_tokens: int
    created_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Visit:
    """Count one request of a key in its windows, and find room for it: it costs nothing and is settled at once."""

    key_id: str
    account: str
    dialect: str
    windows: tuple[Window, ...]


@dataclass(frozen=True, slots=True)
class Opening:
    """Count one request in its windows and reserve what it may cost. `line.created_at` is set when that is done."""

    line: Line
    windows: tuple[Window, ...]
    max_concurrent: int | None = None


class Refusal(StrEnum):
    """Why a request is not let in. CREDIT counts in the windows of requests, the others count nowhere."""

    WINDOW = "window"
    CONCURRENCY = "concurrency"
    CREDIT = "credit"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a request is let in. full: the windows without room for it. at: when that was decided."""

    standings: tuple[WindowStanding, ...]
    refusal: Refusal | None = None
    full: tuple[WindowStanding, ...] = ()
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """What was delivered of an open line so far."""

    id: str
    counts: Counts


@dataclass(frozen=True, slots=True)
class Settlement:
    """Close a line with what was delivered and what that costs; a line that is closed already stays as it is.

    token_windows: the windows in which `held_tokens` were counted; what was not produced is given back to them.
    """

    line: Line
    counts: Counts
    cost: int
    outcome: Outcome
    token_windows: tuple[Window, ...] = ()


Operation = Visit | Opening | Progress | Settlement

Answer = Verdict | bool | None
"""To a visit or an opening its verdict, to a settlement whether it closed the line, to progress nothing."""
