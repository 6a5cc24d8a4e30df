"""The clock of an event loop, moved on by a test."""

import asyncio


class LoopTime:
    """Makes timers of the running loop due without waiting for them; what is ready otherwise still runs before."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        real = loop.time
        self._ahead_s = 0.0
        loop.time = lambda: real() + self._ahead_s  # type: ignore[method-assign]

    def move_on(self, seconds: float) -> None:
        self._ahead_s += seconds
