"""Times and days on the wire: ISO 8601, in UTC. Pure."""

from datetime import UTC, date, datetime

from deployments.errors import InvalidParameter


def to_iso(seconds: float | None) -> str | None:
    """Seconds since 1970 as `2026-01-31T12:00:00Z`, fractions cut off."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def from_iso(text: str | None, param: str) -> float | None:
    """Seconds since 1970. Raises InvalidParameter; a time without its zone could mean any of them."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError
        seconds = moment.astimezone(UTC).timestamp()
        # Refuses what could not be shown again: as a number, the last microsecond of the year 9999 is in the next.
        to_iso(seconds)
    except (ValueError, OverflowError):
        raise InvalidParameter(f"{param} must be a time with its zone, such as 2026-01-31T12:00:00Z", param) from None
    return seconds


def check_day(text: str | None, param: str) -> str | None:
    """A day as `2026-01-31`. Raises InvalidParameter."""
    if text is None:
        return None
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise InvalidParameter(f"{param} must be a day such as 2026-01-31", param) from None
