"""Endpoints, events and deliveries for tests of webhooks, over a real database."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from serve_app.config import WebhooksConfig
from serve_app.jobs.ids import new_id
from serve_app.stores.accounts import SqlAccountStore
from serve_app.stores.database import Database
from serve_app.stores.outbox import enqueue
from serve_app.stores.tables import metadata
from serve_app.stores.webhook_queue import SqlOutbox
from serve_app.stores.webhooks import SqlWebhooks
from serve_app.use_cases.accounts import Accounts
from serve_app.use_cases.webhook_delivery import Claim
from serve_app.use_cases.webhook_secrets import SealedSecrets
from serve_app.use_cases.webhooks import Webhooks
from serve_app.webhooks.attempt import Attempt
from serve_app.webhooks.event import EventType, WebhookEvent

AT = 2_000_000.0
LEASE_S = 45.0
COMPLETED, FAILED = EventType.FINETUNE_COMPLETED, EventType.FINETUNE_FAILED
SECRETS = SealedSecrets(b"a pepper of 32 bytes for the tests")


class Clock:
    time = AT

    def __call__(self) -> float:
        return self.time


@dataclass
class Hooks:
    """One database with its webhooks, seen by owners and by who delivers."""

    database: Database
    clock: Clock
    webhooks: Webhooks
    outbox: SqlOutbox

    async def endpoint(
        self, account: str = "acme", url: str = "https://example.com/", events: Sequence[EventType] = (COMPLETED,)
    ) -> str:
        endpoint, _ = await self.webhooks.create(account, url, events)
        return endpoint.id

    async def happen(self, account: str = "acme", type_: EventType = COMPLETED, id_: str | None = None) -> str:
        """The id of an event that has just happened."""
        event_id = id_ or new_id("evt_", 24)
        event = WebhookEvent(event_id, account, type_, self.clock.time, {"type": type_.value, "text": "Grüße\0"})
        await self.database.transact(lambda connection: enqueue(connection, event))
        return event_id

    async def claim(self, *, sending: Sequence[Claim] = ()) -> Sequence[Claim]:
        now = self.clock.time
        return await self.outbox.claim(now, now + LEASE_S, [claim.parcel for claim in sending])

    async def claim_one(self) -> Claim:
        [claim] = await self.claim()
        return claim

    async def record(
        self, claim: Claim, status: int | None = 204, *, next_in_s: float | None = None, error: str | None = None
    ) -> str | None:
        now = self.clock.time
        return await self.outbox.record(
            claim,
            Attempt(now, status=status, body="answer", error=error),
            None if next_in_s is None else now + next_in_s,
            disable_failing_since=now - WebhooksConfig().disable_after_s,
        )

    async def rows(self, table: str) -> Sequence[Mapping[str, Any]]:
        async with self.database.read() as connection:
            return [row._mapping for row in await connection.execute(select(metadata.tables[table]))]


async def make_hooks(database: Database, **config: Any) -> Hooks:
    accounts = Accounts(SqlAccountStore(database))
    for account in ("acme", "other"):
        await accounts.ensure(account, actor="test")
    clock = Clock()
    webhooks = Webhooks(SqlWebhooks(database), SECRETS, WebhooksConfig(**config), now=clock)
    return Hooks(database, clock, webhooks, SqlOutbox(database))
