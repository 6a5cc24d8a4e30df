"""One request as its client saw it, and what the ledger must say of it. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto


class End(Enum):
    """How an exchange ended for the client."""

    COMPLETE = auto()
    """The answer came to its end."""
    LEFT = auto()
    """The client went away."""
    REFUSED = auto()
    """An error that was due."""
    BROKEN = auto()
    """Neither: a fault of the service."""


@dataclass(frozen=True, slots=True)
class Received:
    """What a client has seen, and so what it is charged for; None where its API does not tell."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    characters: int | None = None

    def agrees_with(self, line: "Line") -> bool:
        pairs = (
            (self.prompt_tokens, line.prompt_tokens),
            (self.completion_tokens, line.completion_tokens),
            (self.characters, line.characters),
        )
        return all(seen is None or seen == billed for seen, billed in pairs)

    def is_within(self, line: "Line") -> bool:
        """Whether at least this was charged."""
        pairs = ((self.completion_tokens, line.completion_tokens), (self.characters, line.characters))
        return all(seen is None or seen <= billed for seen, billed in pairs)


@dataclass(frozen=True, slots=True)
class Line:
    """A settled line of the ledger; cost in microcredits."""

    outcome: str
    prompt_tokens: int
    completion_tokens: int
    characters: int
    cost: int


@dataclass(slots=True)
class Exchange:
    """A request that may cost something. `first_s`: seconds to the first piece, of a stream."""

    id: str
    kind: str
    end: End = End.BROKEN
    received: list[Received] = field(default_factory=list)
    first_s: float | None = None

    @property
    def seen(self) -> Received:
        return self.received[-1] if self.received else Received()


def fault_of(exchange: Exchange, lines: Sequence[Line]) -> str:
    """What is wrong with the ledger's lines of an exchange; nothing where they are right.

    A stream that its client left is charged what it was sent, which is at least what had arrived before the last
    piece; an answer that nobody waited for costs nothing, unless it was complete when the client left.
    """
    charged = [line for line in lines if line.cost]
    told = ", ".join(
        f"{line.outcome} {line.prompt_tokens} {line.completion_tokens} {line.characters}" for line in lines
    )
    problem = ""
    match exchange.end:
        case End.COMPLETE if [line.outcome for line in charged] != ["completed"]:
            problem = "is complete, but not charged once as complete"
        case End.COMPLETE if not exchange.seen.agrees_with(charged[0]):
            problem = f"received {exchange.seen}"
        case End.LEFT if len(charged) > 1 or {line.outcome for line in lines} - {"cancelled", "completed"}:
            problem = "was left, but is charged otherwise"
        case End.LEFT if len(exchange.received) > 1 and not any(
            exchange.received[-2].is_within(one) for one in charged
        ):
            problem = f"was left after {exchange.received[-2]}"
        case End.REFUSED if charged:
            problem = "was refused, but charged"
    return f"{exchange.kind} {exchange.id} {problem}; charged: {told or 'nothing'}" if problem else ""
