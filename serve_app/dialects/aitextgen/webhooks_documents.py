"""How the reference pages show the routes of webhooks."""

from typing import Any

from serve_app.dialects.aitextgen.webhooks_wire import NewWebhook, SecretRotation, WebhookChange
from serve_app.http.documented import documented, page_of
from serve_app.http.resources import PageQuery

_ID = "whep_5t8w1z4c7f0j3m6p9s2v5y8b"
_WEBHOOK: dict[str, Any] = {
    "object": "webhook",
    "id": _ID,
    "url": "https://example.com/hooks",
    "events": ["finetune.completed", "finetune.failed"],
    "status": "enabled",
    "created_at": "2026-01-31T12:00:00Z",
    "failing_since": None,
    "disabled_at": None,
    "disabled_reason": None,
    "old_secret_valid_until": None,
}
_SECRET = {"secret": "whsec_..."}
_DELIVERY: dict[str, Any] = {
    "object": "webhook.delivery",
    "id": "whd_0a3d6g9k2n5q8t1w4z7c0f3j",
    "webhook": _ID,
    "event": "evt_6k9n2q5t8w1z4c7f0j3m6p9s",
    "type": "finetune.completed",
    "status": "pending",
    "attempts": 1,
    "created_at": "2026-01-31T12:03:05Z",
    "last_attempt_at": "2026-01-31T12:03:05Z",
    "next_attempt_at": "2026-01-31T12:03:10Z",
    "finished_at": None,
    "response": {"status": 503, "body": "try again later"},
    "error": None,
}
_NEW_DELIVERY: dict[str, Any] = {**_DELIVERY, "attempts": 0, "last_attempt_at": None, "response": None}

CREATE = documented(
    "Create a webhook",
    answer={**_WEBHOOK, **_SECRET},
    created=True,
    body=NewWebhook,
    requests={
        "documented": {"url": "https://example.com/hooks", "events": ["finetune.completed", "finetune.failed"]},
        "OpenAI's events": {
            "url": "https://example.com/hooks",
            "events": ["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"],
        },
    },
)
LIST = documented("List webhooks", answer=page_of(_WEBHOOK), query=PageQuery)
GET = documented("Retrieve a webhook", answer=_WEBHOOK)
CHANGE = documented(
    "Change a webhook",
    answer=_WEBHOOK,
    body=WebhookChange,
    requests={"events": {"events": ["finetune.failed"]}, "enable": {"status": "enabled"}},
)
DELETE = documented("Delete a webhook", answer={"object": "webhook", "id": _ID, "deleted": True})
ROTATE = documented(
    "Rotate the secret of a webhook",
    answer={**_WEBHOOK, "old_secret_valid_until": "2026-02-01T12:00:00Z", **_SECRET},
    created=True,
    body=SecretRotation,
    requests={"a day": {"overlap_s": 86400}},
)
TEST = documented("Send a test event", answer={**_NEW_DELIVERY, "type": "webhook.test"}, created=True)
DELIVERIES = documented("List the deliveries of a webhook", answer=page_of(_DELIVERY), query=PageQuery)
DELIVERY = documented("Retrieve a delivery", answer=_DELIVERY)
REPLAY = documented("Send an event again", answer=_NEW_DELIVERY, repeatable=True)
