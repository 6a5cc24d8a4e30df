"""Signals that ask the launcher to stop."""

import signal
from types import FrameType
from typing import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """Somebody asked the service to stop."""


class StopSignals:
    """While the context lasts, a signal that asks for the end raises Stopped wherever the main thread is.

    Python drops what is raised where nobody can catch it (a finalizer, a callback), and compiled code may turn it into
    another exception: so loops call `check`, and whoever catches an exception asks `is_stopped` for its cause.
    """

    def __init__(self) -> None:
        self.is_stopped = False
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}

    def listen(self) -> None:
        """Takes the signals, also back from a library that has put its own handlers in place."""
        for number in _SIGNALS:
            signal.signal(number, self._stop)

    def ignore(self) -> None:
        """Lets what is under way finish."""
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def check(self) -> None:
        """Raises Stopped where a signal has come."""
        if self.is_stopped:
            raise Stopped

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.is_stopped = True
        raise Stopped

    def __enter__(self) -> Self:
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
