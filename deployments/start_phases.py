"""What the start of a generator spends its time on. Pure but for the clock."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


class StartPhases:
    """Seconds by phase, in the order in which they began; a phase that comes again adds to its time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {}

    @property
    def seconds(self) -> Mapping[str, float]:
        return self._seconds

    def add(self, phase: str, seconds: float) -> None:
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """Counts what happens in the context as the phase's, in whatever thread."""
        began_at = self._clock()
        try:
            yield
        finally:
            self.add(phase, self._clock() - began_at)
