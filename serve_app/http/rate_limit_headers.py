"""How a key's windows stand, as response headers of three families. Pure; knows neither requests nor stores.

`RateLimit-Policy` and `RateLimit` are those of draft-ietf-httpapi-ratelimit-headers-10; `X-RateLimit-*` what most
services send; `x-ratelimit-*-requests` and `-tokens` what OpenAI's clients read.
"""

import math
from collections.abc import Sequence
from typing import Literal

from serve_app.use_cases.callers import Dialect, WindowStanding

Header = tuple[str, str]

_OPENAI_UNITS: tuple[Literal["requests", "tokens"], ...] = ("requests", "tokens")

NAMES = (
    "RateLimit-Policy",
    "RateLimit",
    "X-RateLimit-Limit",
    "X-RateLimit-Remaining",
    "X-RateLimit-Reset",
    *(f"x-ratelimit-{word}-{unit}" for unit in _OPENAI_UNITS for word in ("limit", "remaining", "reset")),
)
"""Every header that `rate_limit_headers` can give."""


def rate_limit_headers(standings: Sequence[WindowStanding], dialect: Dialect) -> list[Header]:
    """The headers of an answer to a key whose windows stand like this; none where it has no windows.

    The draft's headers list all windows, the one nearest to its end first; `X-RateLimit-*` tell of that one only,
    its reset in seconds from now. OpenAI's are sent in its own dialect, for each unit that a window counts.
    """
    if not standings:
        return []
    tightest_first = sorted(standings, key=_tightness)
    tightest = tightest_first[0]
    headers = [
        ("RateLimit-Policy", ", ".join(map(_policy, tightest_first))),
        ("RateLimit", ", ".join(map(_service_limit, tightest_first))),
        ("X-RateLimit-Limit", str(tightest.window.quota)),
        ("X-RateLimit-Remaining", str(tightest.remaining)),
        ("X-RateLimit-Reset", str(whole_seconds(tightest.resets_in_s))),
    ]
    if dialect is Dialect.TOTALGPT:
        for unit in _OPENAI_UNITS:
            of_unit = [standing for standing in tightest_first if standing.window.counts == unit]
            headers += _openai(of_unit[0], unit) if of_unit else []
    return headers


def whole_seconds(seconds: float) -> int:
    """Rounded up: who comes back after so many seconds does not come too early."""
    return max(0, math.ceil(seconds))


def duration(seconds: float) -> str:
    """As OpenAI spells durations: `120ms`, `1s`, `6m0s`, `24h0m0s`; rounded up."""
    milliseconds = math.ceil(seconds * 1000)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(whole_seconds(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _tightness(standing: WindowStanding) -> tuple[bool, int, float]:
    """Sorts full windows first, then by how many requests are left; how many tokens are left compares to no request.

    Of two with the same number left, the one that stays so for longer.
    """
    is_incomparable = standing.window.counts == "tokens" and standing.remaining > 0
    return (is_incomparable, standing.remaining, -standing.resets_in_s)


def _policy(standing: WindowStanding) -> str:
    window = standing.window
    unit = ';qu="tokens"' if window.counts == "tokens" else ""
    return f"{_structured_string(window.name)};q={window.quota}{unit};w={max(1, math.ceil(window.period_s))}"


def _service_limit(standing: WindowStanding) -> str:
    return f"{_structured_string(standing.window.name)};r={standing.remaining};t={whole_seconds(standing.resets_in_s)}"


def _structured_string(text: str) -> str:
    """A string of RFC 9651, which holds printable ASCII only."""
    printable = "".join(character if " " <= character <= "~" else "?" for character in text)
    return '"' + printable.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _openai(standing: WindowStanding, unit: str) -> list[Header]:
    return [
        (f"x-ratelimit-limit-{unit}", str(standing.window.quota)),
        (f"x-ratelimit-remaining-{unit}", str(standing.remaining)),
        (f"x-ratelimit-reset-{unit}", duration(standing.resets_in_s)),
    ]
