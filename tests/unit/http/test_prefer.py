"""The header Prefer: what a client asks for, and what is made of it."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.http import prefer
from serve_app.http.prefer import Preference, parse_prefer


@pytest.mark.parametrize(
    ("lines", "preference"),
    [
        ([], Preference()),
        ([""], Preference()),
        (["respond-async"], Preference(True)),
        (["Respond-Async"], Preference(True)),
        (["wait=10"], Preference(False, 10)),
        (["WAIT = 10"], Preference(False, 10)),
        (['wait="10"'], Preference(False, 10)),
        (["respond-async, wait=0"], Preference(True, 0)),
        (["respond-async", "wait=5"], Preference(True, 5)),
        (["wait=1, wait=2"], Preference(False, 1)),
        (["return=minimal; foo=bar, respond-async; x"], Preference(True)),
        (['return="respond-async, wait=3"'], Preference()),
        (["wait"], Preference()),
        (["wait=-1"], Preference()),
        (["wait=1.5"], Preference()),
        (["wait=soon, respond-async"], Preference(True)),
        (["wait=9999999999"], Preference()),
        (["=, ,;"], Preference()),
    ],
)
def test_lines_are_understood_as_the_standard_has_them(lines: list[str], preference: Preference) -> None:
    assert parse_prefer(lines) == preference


@pytest.mark.parametrize("malformed", ["a{}@x", 'a={}"x', "{}@"])
def test_no_header_takes_long_to_read(malformed: str) -> None:
    """A pattern that tries every division of the spaces takes a hundred times as long for ten times as many."""
    header = malformed.format(" " * 50_000)
    begun = time.process_time()
    assert prefer._PREFERENCE.fullmatch(header) is None
    assert parse_prefer([header]) == Preference()
    assert time.process_time() - begun < 0.5


def test_a_header_that_is_too_long_is_not_read() -> None:
    assert parse_prefer(["respond-async, " + "x" * 1009]) == Preference(True)
    assert parse_prefer(["respond-async, " + "x" * 1010]) == Preference()


@given(st.lists(st.text(), max_size=3))
def test_no_line_is_an_error(lines: list[str]) -> None:
    preference = parse_prefer(lines)
    assert preference.wait_s is None or preference.wait_s >= 0


@pytest.mark.parametrize(
    ("preference", "hold_s", "applied"),
    [
        (Preference(), 600.0, ""),
        (Preference(True), 0.0, "respond-async"),
        (Preference(False, 10), 10.0, "wait=10"),
        (Preference(True, 10), 10.0, "respond-async, wait=10"),
        (Preference(False, 601), 600.0, ""),
        (Preference(True, 601), 600.0, "respond-async"),
    ],
)
def test_the_service_waits_as_asked_but_no_longer_than_it_may(
    preference: Preference, hold_s: float, applied: str
) -> None:
    assert preference.hold_s(600.0) == hold_s
    assert preference.applied(600.0) == applied
