"""What happens in the service that a webhook can tell of. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class EventType(StrEnum):
    """The first three are this service's own; the others tell the same in the words of OpenAI's webhooks."""

    FINETUNE_COMPLETED = "finetune.completed"
    FINETUNE_FAILED = "finetune.failed"
    FINETUNE_CANCELLED = "finetune.cancelled"
    JOB_SUCCEEDED = "fine_tuning.job.succeeded"
    JOB_FAILED = "fine_tuning.job.failed"
    JOB_CANCELLED = "fine_tuning.job.cancelled"
    TEST = "webhook.test"


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """One thing that happened to an account. id: `evt_...`, the same in every delivery. payload: the body that is sent,
    a JSON object."""

    id: str
    account: str
    type: EventType
    at: float
    payload: Mapping[str, Any]
