"""What webhooks tell of a job that has ended, in this service's words and in OpenAI's. Pure."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from serve_app.jobs.ids import derived_id
from serve_app.jobs.job import Job, JobStatus
from serve_app.webhooks.event import EventType, WebhookEvent

_TYPES: Mapping[JobStatus, tuple[EventType, EventType]] = {
    JobStatus.SUCCEEDED: (EventType.FINETUNE_COMPLETED, EventType.JOB_SUCCEEDED),
    JobStatus.FAILED: (EventType.FINETUNE_FAILED, EventType.JOB_FAILED),
    JobStatus.CANCELLED: (EventType.FINETUNE_CANCELLED, EventType.JOB_CANCELLED),
}
_STATUSES: Mapping[JobStatus, str] = {
    JobStatus.SUCCEEDED: "success",  # as in the answer of POST /v1/aitextgen/finetune
    JobStatus.FAILED: "failed",
    JobStatus.CANCELLED: "cancelled",
}


def announce(job: Job, at: float) -> tuple[WebhookEvent, ...]:
    """The events of a job that has ended at this time; each is told to whoever subscribed to its type."""
    ours, openais = _TYPES[job.status]
    return (
        WebhookEvent(_id(job, ours), job.account, ours, at, _payload(job, ours, at)),
        WebhookEvent(_id(job, openais), job.account, openais, at, _openai_payload(job, openais, at)),
    )


def _id(job: Job, type_: EventType) -> str:
    """The same however often it is asked for: a job ends once, and tells each end once."""
    return derived_id("evt_", 24, f"{job.id} {type_}".encode())


def _payload(job: Job, type_: EventType, at: float) -> Mapping[str, Any]:
    error = job.error
    return {
        "type": type_.value,
        "timestamp": datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z"),
        "id": _id(job, type_),
        "data": {
            "status": _STATUSES[job.status],
            "model_id": job.model_id if job.status is JobStatus.SUCCEEDED else None,
            "training_time": round(job.training_time_s, 3),
            "job_id": job.id,
            "epochs": job.params.epochs,
            "trained_tokens": job.trained_tokens,
            "error": None if error is None else {"code": error.code, "message": error.message},
        },
    }


def _openai_payload(job: Job, type_: EventType, at: float) -> Mapping[str, Any]:
    return {
        "id": _id(job, type_),
        "object": "event",
        "type": type_.value,
        "created_at": int(at),
        "data": {"id": job.id},
    }
