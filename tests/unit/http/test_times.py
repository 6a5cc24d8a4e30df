"""Times on the wire name their zone; days are days."""

import pytest

from deployments.errors import InvalidParameter
from serve_app.http.times import check_day, from_iso, to_iso


def test_times_are_utc() -> None:
    assert to_iso(1769860800.9) == "2026-01-31T12:00:00Z"
    assert from_iso("2026-01-31T12:00:00Z", "at") == 1769860800
    assert from_iso("2026-01-31T13:00:00+01:00", "at") == 1769860800
    assert to_iso(None) is None
    assert from_iso(None, "at") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tomorrow",
        "2026-01-31T12:00:00",
        "2026-01-31",
        "2026-13-01T00:00:00Z",
        "9999-12-31T23:59:59-23:59",
        "9999-12-31T23:59:59.999999Z",
        "0001-01-01T00:00:00+01:00",
    ],
)
def test_times_without_zone_or_sense_are_refused(text: str) -> None:
    with pytest.raises(InvalidParameter) as refusal:
        from_iso(text, "expires_at")
    assert refusal.value.param == "expires_at"


def test_days_are_checked() -> None:
    assert check_day("2026-01-31", "from") == "2026-01-31"
    assert check_day(None, "from") is None
    for text in ("2026-02-30", "31.1.2026", ""):
        with pytest.raises(InvalidParameter):
            check_day(text, "from")
