"""What waits, as gauges."""

from deployments.errors import StorageError
from serve_app.use_cases import backlog
from serve_app.use_cases.backlog import Backlog, BacklogReport
from tests.recording_meter import RecordingMeter

NOW = 1000.0


class Store:
    def __init__(self, found: Backlog) -> None:
        self._found = found

    async def backlog(self, now: float) -> Backlog:
        if now != NOW:
            raise StorageError("another time was expected")
        return self._found


async def measured(found: Backlog) -> RecordingMeter:
    meter = RecordingMeter()
    await BacklogReport(Store(found), meter, now=lambda: NOW).measure()
    return meter


async def test_every_status_has_a_number_and_ages_are_seconds() -> None:
    meter = await measured(Backlog({"running": 2}, 940.0, 5, 990.0, 3, 2_500_000, 700.0))
    assert {status: meter.last(backlog.JOBS, status=status) for status in ("queued", "running", "paused")} == {
        "queued": 0,
        "running": 2,
        "paused": 0,
    }
    assert meter.last(backlog.OLDEST_QUEUED) == 60
    assert (meter.last(backlog.DELIVERIES), meter.last(backlog.LAG)) == (5, 10)
    assert (meter.last(backlog.RESERVATIONS), meter.last(backlog.HELD)) == (3, 2.5)
    assert meter.last(backlog.OLDEST_RESERVATION) == 300


async def test_nothing_that_waits_and_what_is_due_later_are_no_age() -> None:
    meter = await measured(Backlog({}, None, 1, NOW + 60, 0, 0, None))
    assert meter.last(backlog.OLDEST_QUEUED) == meter.last(backlog.LAG) == meter.last(backlog.OLDEST_RESERVATION) == 0
