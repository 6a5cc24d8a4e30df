import contextlib
import signal

import pytest

from serve_app.launcher.stop import Stopped, StopSignals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_main_thread_where_it_is(number: signal.Signals) -> None:
    with StopSignals(), pytest.raises(Stopped):
        signal.raise_signal(number)


def test_a_signal_that_was_swallowed_is_found_by_the_next_check() -> None:
    with StopSignals() as signals:
        signals.check()
        with contextlib.suppress(Stopped):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped):
            signals.check()


def test_signals_are_taken_back_from_a_library_and_given_back_at_the_end() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signals.listen()
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_while_signals_are_ignored_nothing_is_raised() -> None:
    with StopSignals() as signals:
        signals.ignore()
        signal.raise_signal(signal.SIGINT)
        signals.check()
