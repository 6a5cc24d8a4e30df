"""Watches a training from outside its thread: whether it gets on, and that it is to stop."""

import threading
import time
from collections.abc import Callable


class Stopped(Exception):
    """Raised where a training that is to stop looks up."""


class Watch:
    """Shared by a training's thread, which calls `tick` whenever it has got on, and whoever waits for it.

    stall_s: how long nothing may happen before the training counts as hanging. clock: monotonic seconds.
    """

    def __init__(self, *, stall_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._stall_s = stall_s
        self._clock = clock
        self._last_tick = clock()
        self._stop = threading.Event()

    def tick(self) -> None:
        """The training has got on by one piece of its work. Raises Stopped if it is to stop."""
        self._last_tick = self._clock()
        self.check()

    def check(self) -> None:
        """Raises Stopped if the training is to stop."""
        if self._stop.is_set():
            raise Stopped

    def stop(self) -> None:
        self._stop.set()

    @property
    def gets_on(self) -> bool:
        """Whether something happened within `stall_s`."""
        return self._clock() - self._last_tick < self._stall_s
