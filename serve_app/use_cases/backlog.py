"""What waits in the database for whoever works on it: jobs, webhooks, reservations. Knows no SQL and no HTTP."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from deployments.meter import Gauge, Meter
from serve_app.jobs.job import JobStatus

JOBS = Gauge("tritext_jobs", "Fine-tuning jobs that have not ended, by status", ("status",))
OLDEST_QUEUED = Gauge("tritext_oldest_queued_job_seconds", "How long the job that waits longest has waited, or 0")
DELIVERIES = Gauge("tritext_webhook_deliveries_pending", "Webhooks that are not delivered yet, retries included")
LAG = Gauge("tritext_webhook_lag_seconds", "How long the webhook that is overdue longest could have been sent, or 0")
RESERVATIONS = Gauge("tritext_ledger_reservations", "Requests of all processes that are admitted and not settled")
HELD = Gauge("tritext_ledger_held_credits", "What all of them together can cost at most")
OLDEST_RESERVATION = Gauge("tritext_ledger_oldest_reservation_seconds", "The age of the oldest of them, or 0")

METRICS = (JOBS, OLDEST_QUEUED, DELIVERIES, LAG, RESERVATIONS, HELD, OLDEST_RESERVATION)

_OPEN = tuple(status for status in JobStatus if not status.is_final)
_MICROCREDITS = 1_000_000


@dataclass(frozen=True, slots=True)
class Backlog:
    """jobs: how many have each status, of those that have not ended. due_at: when the first pending delivery is due.
    held: microcredits. Times are seconds since 1970, None where there is none."""

    jobs: Mapping[str, int]
    queued_since: float | None
    deliveries: int
    due_at: float | None
    reservations: int
    held: int
    reserved_since: float | None


class BacklogStore(Protocol):
    async def backlog(self, now: float) -> Backlog:
        """What waits now, in all processes. Raises StorageError."""


class BacklogReport:
    """The same for every process that measures it: take the greatest, not the sum."""

    def __init__(self, store: BacklogStore, meter: Meter, *, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self._meter = meter
        self._now = now

    async def measure(self) -> None:
        """To be called every few seconds. Raises StorageError."""
        now = self._now()
        backlog = await self._store.backlog(now)
        for status in _OPEN:
            self._meter.set(JOBS, backlog.jobs.get(status.value, 0), status=status.value)
        self._meter.set(OLDEST_QUEUED, _age(now, backlog.queued_since))
        self._meter.set(DELIVERIES, backlog.deliveries)
        self._meter.set(LAG, _age(now, backlog.due_at))
        self._meter.set(RESERVATIONS, backlog.reservations)
        self._meter.set(HELD, backlog.held / _MICROCREDITS)
        self._meter.set(OLDEST_RESERVATION, _age(now, backlog.reserved_since))


def _age(now: float, since: float | None) -> float:
    return 0.0 if since is None else max(now - since, 0.0)
