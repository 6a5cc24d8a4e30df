"""What may follow what in the life of a fine-tuning job, and what is told of it: the one place for both. Pure.

```
            ┌──────── resumed ────────┐
            ▼                         │
created ▶ queued ──── paused ────▶ paused
            │  ▲                      ▲ │
    claimed │  │ worker lost,         │ │
            │  │ postponed,           │ │
            ▼  │ released             │ │
          running ───── paused ───────┘ │
            │ └─▶ published: succeeded  │
            │ └─▶ failed                │
            └───────▶ cancelled ◀───────┘   (queued jobs too)
```

Every transition takes the job as it is and the time, and returns a `Change`; it raises InvalidRequest where the job's
owner asks for what its status does not allow, and IllegalTransition where a dispatcher does.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from deployments.errors import InvalidRequest
from deployments.training import CheckpointSaved, Finished, Progress, Started, Validated
from serve_app.config import FineTuningConfig
from serve_app.jobs.announcements import announce
from serve_app.jobs.job import Job, JobCheckpoint, JobError, JobEvent, JobStatus, TunedModel
from serve_app.webhooks.event import WebhookEvent

_MAX_PAUSE_S = 300.0
_POSTPONED_S = 10.0
_MAX_DOUBLINGS = 10  # more would change nothing, and overflow at last


class IllegalTransition(Exception):
    """The job's status does not allow it."""


@dataclass(frozen=True, slots=True)
class Change:
    """A job after a transition, and what is stored with it, in one transaction."""

    job: Job
    events: tuple[JobEvent, ...] = ()
    webhooks: tuple[WebhookEvent, ...] = ()
    checkpoint: JobCheckpoint | None = None
    model: TunedModel | None = None


def created(job: Job) -> Change:
    return Change(job, (_event(job, job.created_at, f"Created fine-tuning job: {job.id}"),))


def claimed(job: Job, now: float, *, worker: str, config: FineTuningConfig) -> Change:
    """A dispatcher takes a job that waits, or one whose dispatcher is not heard of: that counts as a lost worker, and
    may be the end of the job. The fence tells this claim from every other one."""
    if not is_claimable(job, now):
        raise IllegalTransition(f"{job.id} is {job.status} and cannot be claimed")
    events: tuple[JobEvent, ...] = ()
    if job.status is JobStatus.RUNNING:
        lost = worker_lost(job, now, reason="its dispatcher is gone", config=config)
        if lost.job.status.is_final:
            return lost
        job, events = lost.job, lost.events
    job = replace(
        job,
        status=JobStatus.RUNNING,
        worker=worker,
        lease_until=now + config.lease_s,
        fence=job.fence + 1,
        claimed_at=now,
    )
    return Change(job, events)


def is_claimable(job: Job, now: float) -> bool:
    if job.status is JobStatus.RUNNING:
        return job.lease_until is None or job.lease_until <= now
    return job.status is JobStatus.QUEUED and job.not_before <= now


def started(job: Job, now: float, event: Started) -> Change:
    _require_running(job)
    about = f"{event.num_documents} documents, {event.num_tokens} tokens, {event.total_steps} steps"
    message = f"Training goes on after step {event.step}" if event.step else f"Fine-tuning job started: {about}"
    data = {
        "step": event.step,
        "total_steps": event.total_steps,
        "num_documents": event.num_documents,
        "num_tokens": event.num_tokens,
        "batch_size": event.batch_size,
        "sequence_length": event.sequence_length,
    }
    started_at = now if job.started_at is None else job.started_at
    job = replace(job, started_at=started_at, step=event.step, total_steps=event.total_steps)
    return Change(job, (_event(job, now, message, data=data),))


def progressed(job: Job, now: float, event: Progress, *, training_time_s: float, is_told: bool = True) -> Change:
    """training_time_s: of all attempts, so far. is_told: the job's history gets a line of it too."""
    _require_running(job)
    progress = {
        "at": now,
        "epoch": event.epoch,
        "loss": _finite(event.loss),
        "learning_rate": event.learning_rate,
        "tokens_per_s": event.tokens_per_s,
        "seconds_left": event.seconds_left,
    }
    job = replace(
        job,
        step=event.step,
        total_steps=event.total_steps,
        progress=progress,
        trained_tokens=event.tokens,
        training_time_s=training_time_s,
    )
    if not is_told:
        return Change(job)
    message = f"Step {event.step}/{event.total_steps}: training loss={event.loss:.4f}"
    data = {
        "step": event.step,
        "total_steps": event.total_steps,
        "epoch": event.epoch,
        "train_loss": _finite(event.loss),
        "learning_rate": event.learning_rate,
        "tokens": event.tokens,
        "tokens_per_second": event.tokens_per_s,
        "seconds_left": event.seconds_left,
    }
    return Change(job, (_event(job, now, message, type="metrics", data=data),))


def validated(job: Job, now: float, event: Validated) -> Change:
    _require_running(job)
    message = f"Step {event.step}/{job.total_steps}: validation loss={event.loss:.4f}"
    return Change(
        job, (_event(job, now, message, type="metrics", data={"step": event.step, "valid_loss": _finite(event.loss)}),)
    )


def checkpointed(job: Job, now: float, event: CheckpointSaved) -> Change:
    """The job has come further: what was lost before does not count any more."""
    _require_running(job)
    job = replace(job, **_PATIENT)
    metrics = {name: value for name, value in event.metrics.items() if math.isfinite(value)}
    checkpoint = JobCheckpoint(job.id, job.account, event.step, event.manifest, metrics, now)
    told = _event(job, now, f"Checkpoint saved after step {event.step}", data={"step": event.step})
    return Change(job, (told,), checkpoint=checkpoint)


def published(job: Job, now: float, event: Finished, *, training_time_s: float) -> Change:
    """The adapter is a model that can be asked, and the job has succeeded: both or neither."""
    _require_running(job)
    job = replace(
        _ended(job, now, JobStatus.SUCCEEDED),
        manifest=event.manifest,
        trained_tokens=event.tokens,
        training_time_s=training_time_s,
    )
    model = TunedModel(
        id=job.model_id,
        account=job.account,
        key_id=job.key_id,
        base_model=job.base_model,
        job=job.id,
        name=job.name,
        manifest=event.manifest,
        num_bytes=event.num_bytes,
        created_at=now,
    )
    events = (
        _event(job, now, f"New fine-tuned model created: {job.model_id}", data={"model": job.model_id}),
        _event(job, now, "The job has successfully completed"),
    )
    return Change(job, events, announce(job, now), model=model)


def failed(job: Job, now: float, error: JobError) -> Change:
    _require_running(job)
    job = replace(_ended(job, now, JobStatus.FAILED), error=error)
    told = _event(job, now, f"The job failed: {error.message}", level="error", data={"code": error.code})
    return Change(job, (told,), announce(job, now))


def worker_lost(job: Job, now: float, *, reason: str, config: FineTuningConfig) -> Change:
    """The job waits for another worker, longer each time; after too many in a row it has failed."""
    _require_running(job)
    attempts = job.attempts + 1
    if attempts >= config.max_attempts:
        message = f"{attempts} workers in a row were lost before they came further; the last because {reason}"
        return failed(replace(job, attempts=attempts), now, JobError("worker_lost", message))
    pause_s = min(config.retry_s * 2 ** (attempts - 1), _MAX_PAUSE_S)
    job = replace(_resting(job, JobStatus.QUEUED), attempts=attempts, not_before=now + pause_s)
    told = _event(job, now, f"The worker was lost: {reason}. Another goes on from the last checkpoint", level="warn")
    return Change(job, (told,))


def postponed(job: Job, now: float, *, reason: str, config: FineTuningConfig) -> Change:
    """What a worker needs is not there at the moment. That is nobody's fault, and no number of times is too many; but
    the pauses grow, and the same reason is told once only."""
    _require_running(job)
    pause_s = min(max(config.retry_s, _POSTPONED_S) * 2.0 ** min(job.postponed, _MAX_DOUBLINGS), _MAX_PAUSE_S)
    told = (_event(job, now, f"The job waits and is tried again: {reason}", level="warn"),)
    events = told if reason != job.postponed_because else ()
    job = _resting(job, JobStatus.QUEUED)
    job = replace(job, not_before=now + pause_s, postponed=job.postponed + 1, postponed_because=reason)
    return Change(job, events)


def released(job: Job, now: float) -> Change:
    """The dispatcher stops in order; another one goes on at once."""
    _require_running(job)
    job = replace(_resting(job, JobStatus.QUEUED), not_before=now)
    return Change(job, (_event(job, now, "The dispatcher stops; another goes on from the last checkpoint"),))


def paused(job: Job, now: float) -> Change:
    if job.status is JobStatus.PAUSED:
        return Change(job)
    if job.status.is_final:
        raise InvalidRequest(f"the job has {_ENDS[job.status]} and cannot be paused")
    job = _resting(job, JobStatus.PAUSED)
    return Change(job, (_event(job, now, "The job was paused"),))


def resumed(job: Job, now: float) -> Change:
    if job.status is not JobStatus.PAUSED:
        raise InvalidRequest(f"only a paused job can be resumed; this one {_ENDS.get(job.status, f'is {job.status}')}")
    job = replace(job, status=JobStatus.QUEUED, not_before=now, **_PATIENT)
    return Change(job, (_event(job, now, "The job was resumed"),))


def cancelled(job: Job, now: float) -> Change:
    if job.status is JobStatus.CANCELLED:
        return Change(job)
    if job.status.is_final:
        raise InvalidRequest(f"the job has {_ENDS[job.status]} and cannot be cancelled")
    job = _ended(job, now, JobStatus.CANCELLED)
    return Change(job, (_event(job, now, "The job was cancelled"),), announce(job, now))


_PATIENT: Mapping[str, Any] = {"attempts": 0, "postponed": 0, "postponed_because": None}
"""Of a job to which nothing has happened yet."""

_ENDS: Mapping[JobStatus, str] = {
    JobStatus.SUCCEEDED: "succeeded",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELLED: "been cancelled",
}


def _resting(job: Job, status: JobStatus) -> Job:
    """Nobody's: whoever ran it finds its claim gone."""
    return replace(job, status=status, worker=None, lease_until=None)


def _ended(job: Job, now: float, status: JobStatus) -> Job:
    return replace(_resting(job, status), finished_at=now)


def _require_running(job: Job) -> None:
    if job.status is not JobStatus.RUNNING:
        raise IllegalTransition(f"{job.id} is {job.status}, not running")


def _finite(number: float) -> float | None:
    """JSON has no word for what a loss becomes that has run away."""
    return number if math.isfinite(number) else None


def _event(
    job: Job,
    at: float,
    message: str,
    *,
    level: str = "info",
    type: str = "message",
    data: Mapping[str, Any] | None = None,
) -> JobEvent:
    return JobEvent(job.id, job.account, at, message, level, type, data or {})
