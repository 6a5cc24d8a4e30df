"""Fine-tuning on the wire: what a request may hold, and jobs as they are shown. Pure."""

from typing import Annotated, Any

from pydantic import Field

from deployments.errors import Conflict, InvalidTrainingData, ServiceError, TrainingFailed
from deployments.training import TrainingParams
from serve_app.http.times import to_iso
from serve_app.http.wire_model import WireModel
from serve_app.jobs.job import Job, JobEvent, JobStatus

DATA = "training_data"
PATH = "/v1/aitextgen/finetune"

_MAX_RETRY_S = 60
_RETRY_S = 5

Document = Annotated[str, Field(min_length=1)]


class FineTuneBody(WireModel):
    """The fields from `model` on are additions to the documented API."""

    training_data: list[Document] = Field(min_length=1, description="The texts to train on; none may be empty.")
    epochs: int = Field(3, ge=1, description="Passes over the data.")
    learning_rate: float = Field(5e-5, gt=0, le=1, description="The highest; it falls to zero by the end.")
    model: str | None = Field(None, description="The configured model to train; the default one where it is left out.")
    name: str = Field("", max_length=200, description="What the new model is called beside its id.")
    seed: int = Field(0, ge=0, lt=2**31, description="The same job with the same seed gives the same model.")
    batch_size: int | None = Field(
        None, ge=1, le=1024, description="Sequences of one step; chosen from the amount of data where it is left out."
    )
    sequence_length: int | None = Field(None, ge=8, le=1_000_000, description="Tokens of a sequence; chosen likewise.")
    rank: int = Field(16, ge=1, description="Of the trained adapter.")
    alpha: float = Field(32.0, ge=1e-3, le=10_000, description="How much the adapter weighs, as a multiple of 1/rank.")
    dropout: float = Field(0.0, ge=0, le=0.9, description="Of the adapter's input, in training.")
    warmup_ratio: float = Field(0.03, ge=0, le=1, description="The part of the steps in which the learning rate rises.")
    weight_decay: float = Field(0.0, ge=0, le=1)
    validation_split: float = Field(0.0, ge=0, le=0.5, description="The part of the texts that measures the loss.")
    num_workers: int = Field(1, ge=1, description="Above 1: data parallel training.")


class FineTuneAnswer(WireModel):
    status: str = Field(description="Always `success`.")
    model_id: str = Field(description="A model for all APIs, from now on.")
    training_time: float = Field(description="Seconds.")


class FineTuneAccepted(WireModel):
    status: str = Field(description="`queued`, `running` or `paused`.")
    job_id: str
    model_id: str = Field(description="The id that the model will have.")


def to_params(body: FineTuneBody) -> TrainingParams:
    return TrainingParams(
        epochs=body.epochs,
        learning_rate=body.learning_rate,
        batch_size=body.batch_size,
        sequence_length=body.sequence_length,
        rank=body.rank,
        alpha=body.alpha,
        dropout=body.dropout,
        warmup_ratio=body.warmup_ratio,
        weight_decay=body.weight_decay,
        seed=body.seed,
        validation_split=body.validation_split,
        num_workers=body.num_workers,
    )


def success_object(job: Job) -> dict[str, Any]:
    """The documented answer."""
    return {"status": "success", "model_id": job.model_id, "training_time": round(job.training_time_s, 3)}


def accepted_object(job: Job) -> dict[str, Any]:
    return {"status": job.status.value, "job_id": job.id, "model_id": job.model_id}


def failure_of(job: Job) -> ServiceError | None:
    """Why there is no model, where the job has ended without one."""
    if job.status is JobStatus.CANCELLED:
        return Conflict(f"the fine-tuning job {job.id} was cancelled")
    if job.status is not JobStatus.FAILED:
        return None
    message = "the training failed" if job.error is None else job.error.message
    if job.error is not None and job.error.code == InvalidTrainingData.code:
        return InvalidTrainingData(message, job.error.param or DATA)
    return TrainingFailed(message)


def retry_after_s(job: Job) -> int:
    """When to ask again: at the estimated end, or earlier where that is far or unknown."""
    seconds_left = (job.progress or {}).get("seconds_left")
    return _RETRY_S if seconds_left is None else max(1, min(_MAX_RETRY_S, round(seconds_left)))


def job_object(job: Job) -> dict[str, Any]:
    """Everything of a job; of one that has succeeded the documented answer's fields say what that answer says."""
    progress = job.progress or {}
    return {
        "status": "success" if job.status is JobStatus.SUCCEEDED else job.status.value,
        "model_id": None if job.status in (JobStatus.FAILED, JobStatus.CANCELLED) else job.model_id,
        "training_time": round(job.training_time_s, 3),
        "job_id": job.id,
        "base_model": job.base_model,
        "name": job.name,
        "epochs": job.params.epochs,
        "learning_rate": job.params.learning_rate,
        "seed": job.params.seed,
        "step": job.step,
        "total_steps": job.total_steps,
        "loss": progress.get("loss"),
        "tokens_per_second": progress.get("tokens_per_s"),
        "seconds_left": None if job.status.is_final else progress.get("seconds_left"),
        "trained_tokens": job.trained_tokens,
        "created_at": to_iso(job.created_at),
        "started_at": to_iso(job.started_at),
        "finished_at": to_iso(job.finished_at),
        "error": None
        if job.error is None
        else {"code": job.error.code, "message": job.error.message, "param": job.error.param},
    }


def event_object(event: JobEvent) -> dict[str, Any]:
    return {
        "id": event.id,
        "created_at": to_iso(event.at),
        "level": event.level,
        "type": event.type,
        "message": event.message,
        "data": dict(event.data),
    }
