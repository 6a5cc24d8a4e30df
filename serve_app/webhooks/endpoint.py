"""An endpoint that webhooks are delivered to, and a delivery as its owner sees it. Pure."""

from dataclasses import dataclass
from enum import StrEnum

from serve_app.webhooks.event import EventType


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One row of `webhook_endpoints` without its secrets. Times are seconds since 1970.

    old_secret_until: until when the secret before the last rotation signs too. failing_since: None: the last delivery
    succeeded, or there was none. disabled_at: nothing is sent from then on; disabled_reason says why.
    """

    id: str
    account: str
    url: str
    events: tuple[EventType, ...]
    created_at: float
    old_secret_until: float | None = None
    failing_since: float | None = None
    disabled_at: float | None = None
    disabled_reason: str | None = None

    @property
    def is_enabled(self) -> bool:
        return self.disabled_at is None


class DeliveryStatus(StrEnum):
    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event on its way to an endpoint. attempts: that have ended. next_at: of a pending one, when it is due; leased:
    it is being sent, and due again at that time where this is not recorded.

    response_status, response_body: of the last attempt, the body's beginning only; error: why there was no response,
    or why it has ended.
    """

    id: str
    endpoint: str
    event: str
    type: EventType
    status: DeliveryStatus
    attempts: int
    created_at: float
    next_at: float | None
    leased: bool
    attempted_at: float | None
    finished_at: float | None
    response_status: int | None
    response_body: str | None
    error: str | None
