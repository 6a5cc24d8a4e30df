"""Standings of windows as headers: what they say, which window they name, and that they can be sent at all."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.http.rate_limit_headers import NAMES, duration, rate_limit_headers, whole_seconds
from serve_app.use_cases.callers import Dialect, Window, WindowStanding

MINUTE = Window("minute", 100, 60.0)
DAY = Window("day", 5000, 86400.0)
TOKENS = Window("tokens", 10_000, 60.0, counts="tokens")


def standing(window: Window, remaining: int, resets_in_s: float = 30.0) -> WindowStanding:
    return WindowStanding(window, remaining, resets_in_s)


def test_two_windows_are_told_in_both_families() -> None:
    headers = rate_limit_headers((standing(MINUTE, 50, 29.2), standing(DAY, 4900, 80_000.5)), Dialect.AITEXTGEN)
    assert headers == [
        ("RateLimit-Policy", '"minute";q=100;w=60, "day";q=5000;w=86400'),
        ("RateLimit", '"minute";r=50;t=30, "day";r=4900;t=80001'),
        ("X-RateLimit-Limit", "100"),
        ("X-RateLimit-Remaining", "50"),
        ("X-RateLimit-Reset", "30"),
    ]


def test_no_window_gives_no_header() -> None:
    assert rate_limit_headers((), Dialect.TOTALGPT) == []


@pytest.mark.parametrize(
    ("standings", "limit"),
    [
        ((standing(MINUTE, 90), standing(DAY, 40)), "5000"),
        ((standing(DAY, 90), standing(MINUTE, 40)), "100"),
        ((standing(MINUTE, 0, 10), standing(DAY, 0, 900)), "5000"),
        ((standing(TOKENS, 1), standing(MINUTE, 90)), "100"),
        ((standing(MINUTE, 90), standing(TOKENS, 0)), "10000"),
        ((standing(TOKENS, 7),), "10000"),
    ],
    ids=["day nearer", "minute nearer", "both full", "tokens do not compare", "tokens full", "tokens alone"],
)
def test_the_window_nearest_to_its_end_is_the_one_named(standings: tuple[WindowStanding, ...], limit: str) -> None:
    headers = dict(rate_limit_headers(standings, Dialect.INFERKIT))
    assert headers["X-RateLimit-Limit"] == limit


def test_openai_headers_go_to_its_dialect_for_each_unit() -> None:
    headers = dict(
        rate_limit_headers(
            (standing(MINUTE, 99, 0.5), standing(TOKENS, 9000, 360.0), standing(DAY, 7)), Dialect.TOTALGPT
        )
    )
    assert headers["x-ratelimit-limit-requests"] == "5000"
    assert headers["x-ratelimit-remaining-requests"] == "7"
    assert headers["x-ratelimit-reset-requests"] == "30s"
    assert headers["x-ratelimit-limit-tokens"] == "10000"
    assert headers["x-ratelimit-remaining-tokens"] == "9000"
    assert headers["x-ratelimit-reset-tokens"] == "6m0s"
    assert headers["RateLimit-Policy"].endswith('"tokens";q=10000;qu="tokens";w=60')
    others = dict(rate_limit_headers((standing(MINUTE, 99),), Dialect.AITEXTGEN))
    assert not any(name.startswith("x-ratelimit") for name in others)
    without_tokens = dict(rate_limit_headers((standing(MINUTE, 99),), Dialect.TOTALGPT))
    assert "x-ratelimit-limit-tokens" not in without_tokens


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-1, "0s"),
        (0.0001, "1ms"),
        (0.12, "120ms"),
        (0.9999, "1s"),
        (1, "1s"),
        (1.1, "2s"),
        (60, "1m0s"),
        (359.5, "6m0s"),
        (3600, "1h0m0s"),
        (86_400, "24h0m0s"),
    ],
)
def test_durations_are_spelled_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(min_value=0, max_value=1e7))
def test_a_duration_is_never_too_short(seconds: float) -> None:
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+)s)?(?:(\d+)ms)?", duration(seconds))
    assert parts is not None
    hours, minutes, rest, milliseconds = (int(part or 0) for part in parts.groups())
    spelled = hours * 3600 + minutes * 60 + rest + milliseconds / 1000
    assert spelled >= seconds - 1e-9
    assert spelled < seconds + 1.001
    assert seconds <= whole_seconds(seconds) <= seconds + 1


WINDOWS = st.builds(
    Window,
    st.text(min_size=1, max_size=20),
    st.integers(1, 10**9),
    st.floats(0.1, 1e6),
    st.sampled_from(["requests", "tokens"]),
)
STANDINGS = st.lists(st.builds(WindowStanding, WINDOWS, st.integers(0, 10**9), st.floats(0, 1e6)), max_size=4)


@given(STANDINGS, st.sampled_from(list(Dialect)))
def test_every_header_is_announced_and_can_be_sent(standings: list[WindowStanding], dialect: Dialect) -> None:
    headers = rate_limit_headers(standings, dialect)
    assert {name for name, _ in headers} <= set(NAMES)
    assert len({name.lower() for name, _ in headers}) == len(headers)
    for _, value in headers:
        assert all(" " <= character <= "~" for character in value)
