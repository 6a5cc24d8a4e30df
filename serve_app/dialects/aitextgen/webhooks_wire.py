"""Webhooks on the wire: what requests may hold, and how endpoints and deliveries are shown. Pure."""

from typing import Annotated, Any, Literal

from pydantic import Field

from serve_app.http.times import to_iso
from serve_app.http.wire_model import WireModel
from serve_app.use_cases.webhooks import MAX_OVERLAP_S, OVERLAP_S, EndpointChange
from serve_app.webhooks.endpoint import Delivery, Endpoint
from serve_app.webhooks.event import EventType

Event = Annotated[EventType, Field(strict=False)]  # JSON has names, and no members of enumerations

_URL = "Where events are sent, by POST: https, on a public address."
_EVENTS = "Which events are sent there."


class NewWebhook(WireModel):
    url: str = Field(min_length=1, description=_URL)
    events: list[Event] = Field(min_length=1, description=_EVENTS)


class WebhookChange(WireModel):
    """What is left out or null stays as it is."""

    url: str | None = Field(None, min_length=1, description=_URL)
    events: list[Event] | None = Field(None, min_length=1, description=_EVENTS)
    status: Literal["enabled", "disabled"] | None = Field(
        None, description="`disabled`: nothing is sent, and what is pending has failed; `enabled`: events are sent."
    )


class SecretRotation(WireModel):
    overlap_s: float = Field(
        OVERLAP_S, ge=0, le=MAX_OVERLAP_S, description="For so many seconds the old secret signs beside the new one."
    )


def to_change(body: WebhookChange) -> EndpointChange:
    enabled = None if body.status is None else body.status == "enabled"
    return EndpointChange(body.url, body.events, enabled)


def webhook_object(endpoint: Endpoint) -> dict[str, Any]:
    """Without its secret, which is shown when it is made, and never again."""
    return {
        "object": "webhook",
        "id": endpoint.id,
        "url": endpoint.url,
        "events": list(endpoint.events),
        "status": "enabled" if endpoint.is_enabled else "disabled",
        "created_at": to_iso(endpoint.created_at),
        "failing_since": to_iso(endpoint.failing_since),
        "disabled_at": to_iso(endpoint.disabled_at),
        "disabled_reason": endpoint.disabled_reason,
        "old_secret_valid_until": to_iso(endpoint.old_secret_until),
    }


def delivery_object(delivery: Delivery) -> dict[str, Any]:
    response = None
    if delivery.response_status is not None:
        response = {"status": delivery.response_status, "body": delivery.response_body}
    return {
        "object": "webhook.delivery",
        "id": delivery.id,
        "webhook": delivery.endpoint,
        "event": delivery.event,
        "type": delivery.type.value,
        "status": delivery.status.value,
        "attempts": delivery.attempts,
        "created_at": to_iso(delivery.created_at),
        "last_attempt_at": to_iso(delivery.attempted_at),
        "next_attempt_at": None if delivery.leased else to_iso(delivery.next_at),
        "finished_at": to_iso(delivery.finished_at),
        "response": response,
        "error": delivery.error,
    }
