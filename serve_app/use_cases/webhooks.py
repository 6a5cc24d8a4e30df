"""Webhook endpoints as their owners see them: created, changed, tried out, and what was delivered to them.

Knows no HTTP and no SQL.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

from deployments.errors import InvalidParameter
from serve_app.config import WebhooksConfig
from serve_app.jobs.ids import new_id
from serve_app.use_cases.webhook_secrets import SealedSecrets
from serve_app.webhooks.addresses import AddressRules
from serve_app.webhooks.endpoint import Delivery, Endpoint
from serve_app.webhooks.event import EventType, WebhookEvent
from serve_app.webhooks.signing import new_secret
from serve_app.webhooks.target import parse_target

OVERLAP_S = 86400.0
MAX_OVERLAP_S = 30 * 86400.0


@dataclass(frozen=True, slots=True)
class EndpointChange:
    """What is to change; None leaves it as it is. enabled: deliveries begin anew, or end."""

    url: str | None = None
    events: Sequence[EventType] | None = None
    enabled: bool | None = None


class WebhookStore(Protocol):
    """The endpoints of all accounts, and what was delivered to them. Every method narrows to one account: what is not
    its own is not there. Returns once its effect outlives a crash."""

    async def add(self, endpoint: Endpoint, secret: bytes, *, most: int) -> None:
        """Raises InvalidRequest where the account has `most` endpoints already."""

    async def get(self, account: str, endpoint_id: str) -> Endpoint:
        """Raises NotFound."""

    async def list(self, account: str, *, after: str | None, limit: int) -> Sequence[Endpoint]:
        """The newest first; those older than the endpoint `after`."""

    async def change(
        self, account: str, endpoint_id: str, change: Callable[[Endpoint], Endpoint], at: float
    ) -> Endpoint:
        """The endpoint after the change; of one that is disabled by it, what is pending ends. Raises NotFound."""

    async def rotate(self, account: str, endpoint_id: str, secret: bytes, *, old_until: float) -> Endpoint:
        """Makes the present secret the old one. Raises NotFound."""

    async def delete(self, account: str, endpoint_id: str, at: float) -> None:
        """Forgets its secrets and ends what is pending. Raises NotFound."""

    async def add_event(self, event: WebhookEvent, endpoint_id: str) -> Delivery:
        """To be delivered to this endpoint alone. Raises NotFound; InvalidRequest where it is disabled."""

    async def deliveries(self, account: str, endpoint_id: str, *, after: str | None, limit: int) -> Sequence[Delivery]:
        """The newest first; those older than the delivery `after`. Raises NotFound."""

    async def delivery(self, account: str, endpoint_id: str, delivery_id: str) -> Delivery:
        """Raises NotFound."""

    async def replay(self, account: str, endpoint_id: str, delivery_id: str, at: float) -> Delivery:
        """Makes it due at this time, as if it were new; one that is being sent at this moment stays as it is.

        Raises NotFound; InvalidRequest where the endpoint is disabled.
        """


class Webhooks:
    """The endpoints of one service. nudge: called when there is something to deliver; must not wait."""

    def __init__(
        self,
        store: WebhookStore,
        secrets: SealedSecrets,
        config: WebhooksConfig,
        *,
        nudge: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._secrets = secrets
        self._config = config
        self._rules = address_rules(config)
        self._nudge = nudge
        self._now = now

    async def create(self, account: str, url: str, events: Sequence[EventType]) -> tuple[Endpoint, str]:
        """A new endpoint, and the secret by which its deliveries are signed, which cannot be had again.

        Raises InvalidParameter for the URL; InvalidRequest where the account has too many endpoints.
        """
        parse_target(url, self._rules)
        endpoint = Endpoint(new_id("whep_", 24), account, url, _distinct(events), self._now())
        secret = new_secret()
        sealed = self._secrets.seal(endpoint.id, secret)
        await self._store.add(endpoint, sealed, most=self._config.max_endpoints)
        return endpoint, secret

    async def get(self, account: str, endpoint_id: str) -> Endpoint:
        """Raises NotFound."""
        return await self._store.get(account, endpoint_id)

    async def list(self, account: str, *, after: str | None = None, limit: int = 100) -> Sequence[Endpoint]:
        """The newest first; those older than the endpoint `after`."""
        return await self._store.list(account, after=after, limit=limit)

    async def change(self, account: str, endpoint_id: str, change: EndpointChange) -> Endpoint:
        """Raises NotFound, InvalidParameter."""
        now = self._now()
        url, events, enabled = change.url, change.events, change.enabled
        if url is not None:
            parse_target(url, self._rules)

        def changed(endpoint: Endpoint) -> Endpoint:
            endpoint = replace(
                endpoint,
                url=endpoint.url if url is None else url,
                events=endpoint.events if events is None else _distinct(events),
            )
            if enabled is None or enabled == endpoint.is_enabled:
                return endpoint
            if enabled:
                return replace(endpoint, disabled_at=None, disabled_reason=None, failing_since=None)
            return replace(endpoint, disabled_at=now, disabled_reason="it was disabled by its owner")

        return await self._store.change(account, endpoint_id, changed, now)

    async def rotate(self, account: str, endpoint_id: str, *, overlap_s: float = OVERLAP_S) -> tuple[Endpoint, str]:
        """A new secret, which cannot be had again; for `overlap_s` the present one signs beside it.

        One that was rotated out before signs no more. Raises NotFound, InvalidParameter.
        """
        if not 0 <= overlap_s <= MAX_OVERLAP_S:
            raise InvalidParameter(f"overlap_s must be from 0 to {MAX_OVERLAP_S:g}", "overlap_s")
        secret = new_secret()
        sealed = self._secrets.seal(endpoint_id, secret)
        endpoint = await self._store.rotate(account, endpoint_id, sealed, old_until=self._now() + overlap_s)
        return endpoint, secret

    async def delete(self, account: str, endpoint_id: str) -> None:
        """Nothing more is sent to it. Raises NotFound."""
        await self._store.delete(account, endpoint_id, self._now())

    async def test(self, account: str, endpoint_id: str) -> Delivery:
        """Sends an event `webhook.test`, once: where it fails it is not tried again.

        Raises NotFound; InvalidRequest where the endpoint is disabled.
        """
        delivery = await self._store.add_event(_test_event(account, endpoint_id, self._now()), endpoint_id)
        self._nudge()
        return delivery

    async def deliveries(
        self, account: str, endpoint_id: str, *, after: str | None = None, limit: int = 100
    ) -> Sequence[Delivery]:
        """The newest first; those older than the delivery `after`. Raises NotFound."""
        return await self._store.deliveries(account, endpoint_id, after=after, limit=limit)

    async def delivery(self, account: str, endpoint_id: str, delivery_id: str) -> Delivery:
        """Raises NotFound."""
        return await self._store.delivery(account, endpoint_id, delivery_id)

    async def replay(self, account: str, endpoint_id: str, delivery_id: str) -> Delivery:
        """Sends it now, whatever came of it, and with all its retries. One that is being sent stays as it is.

        Raises NotFound; InvalidRequest where the endpoint is disabled.
        """
        delivery = await self._store.replay(account, endpoint_id, delivery_id, self._now())
        self._nudge()
        return delivery


def address_rules(config: WebhooksConfig) -> AddressRules:
    return AddressRules(tuple(config.allowed_networks), frozenset({443, *config.ports}))


def _distinct(events: Sequence[EventType]) -> tuple[EventType, ...]:
    return tuple(dict.fromkeys(events))


def _test_event(account: str, endpoint_id: str, at: float) -> WebhookEvent:
    event_id = new_id("evt_", 24)
    payload = {
        "type": EventType.TEST.value,
        "timestamp": datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z"),
        "id": event_id,
        "data": {"webhook_id": endpoint_id},
    }
    return WebhookEvent(event_id, account, EventType.TEST, at, payload)
