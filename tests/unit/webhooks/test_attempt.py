"""What follows an attempt: nothing after success, 410 and the last; else a pause with jitter, or as long as asked."""

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.config import WebhooksConfig
from serve_app.webhooks.attempt import JITTER, MAX_RETRY_AFTER_S, Attempt, kept_text, pause_after, retry_after_s

RETRY_S = WebhooksConfig().retry_s
FAILED = Attempt(0.0, status=500)


def test_the_schedule_spans_three_days() -> None:
    pauses = [pause_after(FAILED, number, RETRY_S, chance=0.5) for number in range(1, len(RETRY_S) + 2)]
    assert pauses == [5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400, None]
    assert sum(RETRY_S) > 3 * 86400


@given(st.integers(1, len(RETRY_S)), st.floats(0, 1))
def test_pauses_vary_by_the_jitter(number: int, chance: float) -> None:
    pause = pause_after(FAILED, number, RETRY_S, chance=chance)
    assert pause is not None
    assert abs(pause / RETRY_S[number - 1] - 1) <= JITTER + 1e-9


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_success_ends_a_delivery(status: int) -> None:
    assert Attempt(0.0, status=status).succeeded
    assert pause_after(Attempt(0.0, status=status), 1, RETRY_S, chance=0.5) is None


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 404, 429, 500, 503])
def test_everything_else_is_tried_again(status: int) -> None:
    assert not Attempt(0.0, status=status).succeeded
    assert pause_after(Attempt(0.0, status=status), 1, RETRY_S, chance=0.5) == 5


def test_no_response_is_tried_again() -> None:
    assert pause_after(Attempt(0.0, error="no connection"), 2, RETRY_S, chance=0.5) == 300


def test_gone_is_not_tried_again() -> None:
    assert pause_after(Attempt(0.0, status=410), 1, RETRY_S, chance=0.5) is None


def test_a_receiver_that_asks_for_more_time_gets_it_and_for_less_does_not() -> None:
    assert pause_after(Attempt(0.0, status=429, retry_after_s=120), 1, RETRY_S, chance=0.5) == 120
    assert pause_after(Attempt(0.0, status=429, retry_after_s=1), 2, RETRY_S, chance=0.5) == 300
    assert pause_after(Attempt(0.0, status=429, retry_after_s=120), 10, RETRY_S, chance=0.5) is None


NOW = 1_700_000_000.0


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_retry_after_is_read_in_seconds_and_as_a_date(status: int) -> None:
    assert retry_after_s(status, "120", NOW) == 120
    assert retry_after_s(status, formatdate(NOW + 90, usegmt=True), NOW) == 90
    assert retry_after_s(status, formatdate(NOW - 90, usegmt=True), NOW) == 0
    assert retry_after_s(status, "9" * 400, NOW) == MAX_RETRY_AFTER_S
    assert retry_after_s(status, None, NOW) == 0


@pytest.mark.parametrize("status", [200, 301, 400, 500])
def test_retry_after_of_other_responses_says_nothing(status: int) -> None:
    assert retry_after_s(status, "120", NOW) == 0


@pytest.mark.parametrize(
    "header", ["Mon, 01 Jan 99999999999 00:00:00 GMT", "Mon, 01 Jan 2030 00:00:00 +99999999999999", "9999999999"]
)
def test_dates_beyond_what_the_platform_counts_are_bounded(header: str) -> None:
    assert retry_after_s(503, header, NOW) in (0.0, MAX_RETRY_AFTER_S)


@given(st.text(max_size=60))
def test_no_header_breaks_the_reader(header: str) -> None:
    assert 0 <= retry_after_s(429, header, NOW) <= MAX_RETRY_AFTER_S


@given(st.binary(max_size=3000))
def test_what_is_kept_is_short_text_that_databases_can_hold(body: bytes) -> None:
    text = kept_text(body)
    assert len(text) <= 1024
    assert "\0" not in text
    text.encode()
