"""The bridge from the engine's step thread to the event loop that waits for a request's tokens."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from deployments.engine.protocol import TokenDelta
from deployments.types import Timing


class QueuedGeneration:
    """Implements `Generation`. All its methods run on `loop`, to which the step thread hands its calls.

    `stop` tells the engine to end sequences; `forget` that nothing is awaited any more. `wants_pieces` and `has_begun`
    are for `Delivery`, in the step thread: whether tokens are awaited before a sequence ends, and whether some came.
    `note_begin` and `note_tokens` are the step thread's too. All times are of one clock.
    """

    def __init__(
        self,
        indexes: Sequence[int],
        *,
        wants_pieces: bool,
        submitted_at: float = 0.0,
        stop: Callable[[Sequence[int]], None],
        forget: Callable[[], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.wants_pieces = wants_pieces
        self.has_begun = False
        self._open = set(indexes)
        self._stop = stop
        self._forget = forget
        self._deltas: list[TokenDelta] = []
        self._error: Exception | None = None
        self._changed = asyncio.Event()
        self._submitted_at = submitted_at
        self._begun_at: float | None = None
        self._first_at: float | None = None
        self._last_at = submitted_at

    @property
    def is_open(self) -> bool:
        """Whether tokens are still wanted; may be asked from any thread."""
        return bool(self._open)

    @property
    def timing(self) -> Timing | None:
        if self._begun_at is None or self._first_at is None:
            return None
        begun_s, first_s, last_s = (at - self._submitted_at for at in (self._begun_at, self._first_at, self._last_at))
        return Timing(begun_s, first_s, last_s)

    def note_begin(self, at: float) -> None:
        """Its first step began."""
        self._begun_at = at

    def note_tokens(self, at: float) -> None:
        """A step that brought it tokens has ended."""
        self._last_at = at
        if self._first_at is None:
            self._first_at = at

    async def __aiter__(self) -> AsyncIterator[Sequence[TokenDelta]]:
        while True:
            if self._deltas:
                deltas, self._deltas = self._deltas, []
                yield deltas
            elif self._error is not None:
                raise self._error
            elif not self._open:
                return
            else:
                self._changed.clear()
                await self._changed.wait()

    def put(self, deltas: Sequence[TokenDelta]) -> None:
        for delta in deltas:
            if delta.index in self._open:
                self._deltas.append(delta)
                if delta.finish_reason is not None:
                    self._end({delta.index})
        self._changed.set()

    def fail(self, error: Exception) -> None:
        """Means nothing to one that has ended already, be it with another error."""
        if self._open:
            self._error = error
            self._end(self._open)
            self._changed.set()

    def stop_sequence(self, index: int) -> None:
        if index in self._open:
            self._stop([index])
            self._end({index})
            self._deltas = [delta for delta in self._deltas if delta.index != index]

    def close(self) -> None:
        if self._open:
            self._stop(sorted(self._open))
            self._end(self._open)

    def _end(self, indexes: set[int]) -> None:
        self._open = self._open - indexes
        if not self._open:
            self._forget()
