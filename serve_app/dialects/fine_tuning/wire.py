"""OpenAI's objects of files, jobs, events and checkpoints, and what a request for a job may hold. Pure."""

import secrets
from typing import Annotated, Any, Literal

from pydantic import Field

from deployments.errors import InvalidParameter
from deployments.training import TrainingParams
from serve_app.http.wire_model import WireModel
from serve_app.jobs.job import Job, JobCheckpoint, JobEvent, JobStatus, TrainingFile
from serve_app.use_cases.document_training import AUTO_LEARNING_RATE

AUTO_EPOCHS = 3

_MAX_METADATA, _MAX_KEY, _MAX_VALUE = 16, 64, 512
_EVENT, _CHECKPOINT = "ftevent-", "ftckpt-"


class Hyperparameters(WireModel):
    n_epochs: Literal["auto"] | int = Field("auto", description="Passes over the data; `auto`: 3.")
    batch_size: Literal["auto"] | int = Field(
        "auto", description="Sequences of one step; `auto`: chosen from the amount of data."
    )
    learning_rate_multiplier: Literal["auto"] | Annotated[float, Field(gt=0)] = Field(
        "auto", description="Of the learning rate 0.0002; `auto`: 1."
    )


class Supervised(WireModel):
    hyperparameters: Hyperparameters | None = None


class Method(WireModel):
    type: Literal["supervised"]
    supervised: Supervised | None = None


class JobBody(WireModel):
    model: str = Field(description="The id or an alias of a configured model.")
    training_file: str = Field(description="The id of a file.")
    validation_file: str | None = Field(None, description="The id of a file on which the loss is measured.")
    suffix: str | None = Field(None, min_length=1, max_length=64, description="What the new model is called.")
    seed: int | None = Field(None, ge=0, lt=2**31, description="By default one that is drawn, and shown in the job.")
    hyperparameters: Hyperparameters | None = Field(None, description="The same as in `method`, the older way.")
    method: Method | None = Field(None, description="`supervised` is the only one.")
    metadata: dict[str, str] | None = Field(None, description="Up to 16 words of the client's own.")
    integrations: list[dict[str, Any]] | None = Field(None, max_length=0, description="None is supported.")


def check_metadata(metadata: dict[str, str] | None) -> dict[str, str]:
    """Raises InvalidParameter."""
    metadata = metadata or {}
    if len(metadata) > _MAX_METADATA:
        raise InvalidParameter(f"metadata must have at most {_MAX_METADATA} pairs", "metadata")
    for key, value in metadata.items():
        if not 1 <= len(key) <= _MAX_KEY or '"' in key or "\0" in key:
            raise InvalidParameter(f"a key must have 1 to {_MAX_KEY} characters, no quotes among them", "metadata")
        if len(value) > _MAX_VALUE or "\0" in value:
            raise InvalidParameter(f"metadata.{key} must have at most {_MAX_VALUE} characters", f"metadata.{key}")
    return metadata


def hyperparameters_of(body: JobBody) -> tuple[Hyperparameters, str]:
    """What the job shall be trained with, and where the client has written it. Raises InvalidParameter."""
    supervised = None if body.method is None else body.method.supervised
    in_method = None if supervised is None else supervised.hyperparameters
    if in_method is None:
        return body.hyperparameters or Hyperparameters(), "hyperparameters"
    if body.hyperparameters is not None:
        raise InvalidParameter("hyperparameters must stand here or in method, not in both", "hyperparameters")
    return in_method, "method.supervised.hyperparameters"


def to_params(body: JobBody, given: Hyperparameters) -> TrainingParams:
    multiplier = 1.0 if given.learning_rate_multiplier == "auto" else given.learning_rate_multiplier
    return TrainingParams(
        epochs=AUTO_EPOCHS if given.n_epochs == "auto" else given.n_epochs,
        learning_rate=AUTO_LEARNING_RATE * multiplier,
        batch_size=None if given.batch_size == "auto" else given.batch_size,
        seed=secrets.randbelow(2**31) if body.seed is None else body.seed,
    )


def naming_fields(error: InvalidParameter, place: str) -> InvalidParameter:
    """The error with the name that the field has here."""
    if error.param == "name":
        return InvalidParameter("suffix must have printable characters only", "suffix")
    names = {"epochs": "n_epochs", "batch_size": "batch_size", "learning_rate": "learning_rate_multiplier"}
    if error.param not in names:
        return error
    param = f"{place}.{names[error.param]}"
    return InvalidParameter(f"{param}: {error.message}", param)


def file_object(file: TrainingFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "expires_at": None,
        "status_details": None,
    }


def job_object(job: Job) -> dict[str, Any]:
    params = job.params
    hyperparameters = {
        "n_epochs": params.epochs,
        "batch_size": "auto" if params.batch_size is None else params.batch_size,
        "learning_rate_multiplier": params.learning_rate / AUTO_LEARNING_RATE,
    }
    has_succeeded = job.status is JobStatus.SUCCEEDED
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": int(job.created_at),
        "finished_at": None if job.finished_at is None else int(job.finished_at),
        "estimated_finish": _estimated_finish(job),
        "model": job.base_model,
        "fine_tuned_model": job.model_id if has_succeeded else None,
        "organization_id": job.account,
        "status": _status(job),
        "hyperparameters": hyperparameters,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "result_files": [],
        "trained_tokens": job.trained_tokens if has_succeeded else None,
        "seed": params.seed,
        "error": None
        if job.error is None
        else {"code": job.error.code, "message": job.error.message, "param": job.error.param},
        "user_provided_suffix": job.name or None,
        "metadata": dict(job.metadata),
        "integrations": [],
    }


def event_object(event: JobEvent) -> dict[str, Any]:
    return {
        "id": f"{_EVENT}{event.id}",
        "object": "fine_tuning.job.event",
        "created_at": int(event.at),
        "level": event.level,
        "message": event.message,
        "type": event.type,
        "data": dict(event.data),
    }


def event_number(event_id: str | None) -> int | None:
    """What `event_object` has made of it. Raises InvalidParameter."""
    if event_id is None:
        return None
    number = event_id.removeprefix(_EVENT)
    if number == event_id or not (number.isascii() and number.isdigit()) or len(number) > 18:
        raise InvalidParameter("after must be the id of an event", "after")
    return int(number)


def checkpoint_object(checkpoint: JobCheckpoint, job: Job) -> dict[str, Any]:
    """A checkpoint is there to go on from; the name of its model answers nothing."""
    metrics = {"step": checkpoint.step, **checkpoint.metrics}
    if "loss" in metrics:
        metrics["train_loss"] = metrics.pop("loss")
    return {
        "id": f"{_CHECKPOINT}{checkpoint.manifest}",
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(checkpoint.created_at),
        "fine_tuned_model_checkpoint": f"{job.model_id}:step-{checkpoint.step}",
        "fine_tuning_job_id": checkpoint.job,
        "step_number": checkpoint.step,
        "metrics": metrics,
    }


def checkpoint_manifest(checkpoint_id: str | None) -> str | None:
    return None if checkpoint_id is None else checkpoint_id.removeprefix(_CHECKPOINT)


def _status(job: Job) -> str:
    """A worker that has just been given the job reads the files first."""
    if job.status is JobStatus.RUNNING and job.total_steps is None:
        return "validating_files"
    return job.status.value


def _estimated_finish(job: Job) -> int | None:
    progress = job.progress or {}
    if job.status is not JobStatus.RUNNING or progress.get("seconds_left") is None:
        return None
    return int(progress["at"] + progress["seconds_left"])
