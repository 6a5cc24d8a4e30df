"""What came of one attempt to deliver, and when the next one follows. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

KEPT_BYTES = 1024
"""How much of a response is kept."""
MAX_RETRY_AFTER_S = 86400.0
JITTER = 0.1
"""By how much a pause may be shorter or longer, as a part of it."""

_GONE = 410
_SLOW_DOWN = (429, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class Attempt:
    """status: of the response, whose beginning is `body`; or None, and `error` says why there was none.

    at: when it began, in seconds since 1970. retry_after_s: how long the receiver wants to be left alone.
    """

    at: float
    status: int | None = None
    body: str = ""
    error: str | None = None
    retry_after_s: float = 0.0

    @property
    def succeeded(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def is_gone(self) -> bool:
        """The receiver wants nothing more, ever."""
        return self.status == _GONE


def kept_text(body: bytes) -> str:
    """The beginning of a response as text that every database can hold."""
    return body[:KEPT_BYTES].decode(errors="replace").replace("\0", "\ufffd")


def pause_after(attempt: Attempt, num_attempts: int, retry_s: Sequence[float], *, chance: float) -> float | None:
    """Seconds until the next attempt; None where there is none, because it succeeded or was the last.

    num_attempts: with this one. chance: a random number from 0 to 1, so that what failed together does not come back
    together.
    """
    if attempt.succeeded or attempt.is_gone or num_attempts > len(retry_s):
        return None
    planned = retry_s[num_attempts - 1] * (1 - JITTER + 2 * JITTER * chance)
    return max(planned, attempt.retry_after_s)


def retry_after_s(status: int, header: str | None, now: float) -> float:
    """What a response that asks to slow down says in Retry-After, in seconds or as a date; 0 where it says nothing."""
    if status not in _SLOW_DOWN or header is None:
        return 0.0
    if header.isascii() and header.isdigit():
        seconds = float(header[:20])
    else:
        try:
            moment = parsedate_to_datetime(header)
        except (ValueError, OverflowError):  # the latter for years and zones beyond what the platform's integers hold
            return 0.0
        # One without a zone, which should not be, is taken for UTC.
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now
    return min(max(0.0, seconds), MAX_RETRY_AFTER_S) if math.isfinite(seconds) else 0.0
