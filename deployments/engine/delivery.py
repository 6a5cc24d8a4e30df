"""How tokens leave the step thread for the event loops that wait for them: seldom enough to be cheap."""

import asyncio
import contextlib
import functools
from collections.abc import Callable, Sequence

from deployments.engine.generation import QueuedGeneration
from deployments.engine.protocol import TokenDelta

_FEW_STREAMS = 16
_LONGEST_STRETCH = 3.0


class Delivery:
    """Holds tokens back for a moment, so that one message to a client carries several of them.

    A generation's first tokens and the end of a sequence go at once. Other tokens go with the first step that ends
    `interval_s` after the last one that sent everything; those of a generation that wants no pieces wait for the end of
    a sequence. Where more than 16 streams get something the interval grows with their number, up to three times: what
    sends the messages would take from the steps what they need. A step wakes an event loop once for all that it sends
    it, and not at all where it sends nothing.
    To be used from one thread.
    """

    def __init__(self, interval_s: float, clock: Callable[[], float]) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._next_at = clock() + interval_s
        self._held: dict[QueuedGeneration, list[TokenDelta]] = {}
        self._urgent: set[QueuedGeneration] = set()
        self._failed: dict[QueuedGeneration, Exception] = {}

    def add(self, generation: QueuedGeneration, deltas: Sequence[TokenDelta]) -> None:
        self._held.setdefault(generation, []).extend(deltas)
        is_first = generation.wants_pieces and not generation.has_begun
        generation.has_begun = True
        if is_first or any(delta.finish_reason is not None for delta in deltas):
            self._urgent.add(generation)

    def fail(self, generation: QueuedGeneration, error: Exception) -> None:
        """The generation ends with the error, after what was held back of it."""
        self._failed[generation] = error

    def send(self) -> None:
        """Hands over what is due; to be called after each step."""
        due = self._urgent | self._failed.keys()
        now = self._clock()
        if now >= self._next_at:
            # What nobody wants any more goes as well, to be forgotten.
            pieces = {generation for generation in self._held if generation.wants_pieces or not generation.is_open}
            self._next_at = now + self._interval_s * min(max(1.0, len(pieces) / _FEW_STREAMS), _LONGEST_STRETCH)
            due |= pieces
        calls: dict[asyncio.AbstractEventLoop, list[Callable[[], None]]] = {}
        for generation in due:
            loop_calls = calls.setdefault(generation.loop, [])
            if deltas := self._held.pop(generation, None):
                loop_calls.append(functools.partial(generation.put, deltas))
            if error := self._failed.pop(generation, None):
                loop_calls.append(functools.partial(generation.fail, error))
        self._urgent.clear()
        for loop, loop_calls in calls.items():
            # A loop that is closed has nobody waiting any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_call_all, loop_calls)


def _call_all(calls: Sequence[Callable[[], None]]) -> None:
    for call in calls:
        call()
