"""A fine-tuning job and its transitions: the one place that says what may follow what. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from deployments.training import TrainingParams


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed. param: the field of the request at fault, if it is one."""

    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One row of `jobs`, whose comments say what the fields are. Times are seconds since 1970."""

    id: str
    account: str
    key_id: str
    dialect: str
    base_model: str
    model_id: str
    name: str
    training_file: str
    params: TrainingParams
    created_at: float
    status: JobStatus = JobStatus.QUEUED
    validation_file: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    error: JobError | None = None
    started_at: float | None = None
    finished_at: float | None = None
    not_before: float = 0.0
    worker: str | None = None
    lease_until: float | None = None
    fence: int = 0
    claimed_at: float | None = None
    attempts: int = 0
    postponed: int = 0
    postponed_because: str | None = None
    step: int = 0
    total_steps: int | None = None
    progress: Mapping[str, Any] | None = None
    trained_tokens: int = 0
    training_time_s: float = 0.0
    manifest: str | None = None


@dataclass(frozen=True, slots=True)
class JobEvent:
    """A line of a job's history. id: grows; 0 for one that is not stored yet. level: info, warn, error.
    type: message, metrics."""

    job: str
    account: str
    at: float
    message: str
    level: str = "info"
    type: str = "message"
    data: Mapping[str, Any] = field(default_factory=dict)
    id: int = 0


@dataclass(frozen=True, slots=True)
class JobCheckpoint:
    job: str
    account: str
    step: int
    manifest: str
    metrics: Mapping[str, float]
    created_at: float


@dataclass(frozen=True, slots=True)
class TrainingFile:
    """Documents to train on. digest: of the blob that holds them, one JSON string a line. original: of the blob with
    the file as it was uploaded. bytes: of that."""

    id: str
    account: str
    filename: str
    purpose: str
    bytes: int
    digest: str
    original: str
    num_documents: int
    created_at: float
    deleted_at: float | None = None


@dataclass(frozen=True, slots=True)
class TunedModel:
    """A published adapter. key_id: of the key that asked for its training. manifest: its digest in the object
    store, by which generators know it."""

    id: str
    account: str
    key_id: str
    base_model: str
    job: str
    name: str
    manifest: str
    num_bytes: int
    created_at: float
    deployed: bool = True
    undeploy_at: float | None = None
    deleted_at: float | None = None
