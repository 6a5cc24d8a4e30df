"""The parts of a request's time, for traces. Pure: whether anybody records them is decided elsewhere."""

from typing import Protocol

from deployments.types import Timing


class Spans(Protocol):
    def record(self, name: str, began_at: float, ended_at: float, **attributes: int) -> None:
        """A part of what is being done here, in seconds since 1970. To be called while it is still being done."""


class NoSpans:
    """Implements `Spans` where nobody looks."""

    def record(self, name: str, began_at: float, ended_at: float, **attributes: int) -> None:
        pass


def record_engine(
    spans: Spans, submitted_at: float, timing: Timing | None, *, num_tokens: int, num_cached: int
) -> None:
    """What the engine did for a request that has ended; timing: None where it brought no token.

    num_tokens: new ones; num_cached: of the prompt, found in the cache.
    """
    if timing is None:
        return
    begun_at, first_at, last_at = (
        submitted_at + seconds for seconds in (timing.queue_s, timing.first_token_s, timing.last_token_s)
    )
    spans.record("engine queue", submitted_at, begun_at)
    spans.record("engine prefill", begun_at, first_at, cached_tokens=num_cached)
    spans.record("engine decode", first_at, last_at, tokens=num_tokens)
