"""The outbox: what is enqueued, who gets it, what came of it; on both databases."""

import asyncio
import json

import pytest
from sqlalchemy import update

from serve_app.stores.database import Database
from serve_app.stores.outbox import enqueue
from serve_app.stores.tables import webhook_endpoints
from serve_app.use_cases.webhook_delivery import KEPT_FOR_S, Claim
from serve_app.use_cases.webhooks import EndpointChange
from serve_app.webhooks.endpoint import DeliveryStatus
from serve_app.webhooks.event import WebhookEvent
from serve_app.webhooks.sharing import MAX_SENDING_OF_ACCOUNT, MAX_SENDING_TO_ENDPOINT
from tests.integration.stores.webhook_rows import AT, COMPLETED, FAILED, LEASE_S, SECRETS, Hooks, make_hooks


@pytest.fixture
async def hooks(database: Database) -> Hooks:
    return await make_hooks(database)


async def test_an_event_is_delivered_to_who_subscribed_to_its_type_in_its_account(hooks: Hooks) -> None:
    both = await hooks.endpoint(events=(COMPLETED, FAILED))
    completed = await hooks.endpoint()
    await hooks.endpoint(events=(FAILED,))
    await hooks.endpoint("other")
    event = await hooks.happen()
    claims = await hooks.claim()
    assert {claim.parcel.endpoint for claim in claims} == {both, completed}
    assert {(claim.event, claim.parcel.account, claim.type) for claim in claims} == {(event, "acme", COMPLETED)}


async def test_a_claim_carries_what_is_sent(hooks: Hooks) -> None:
    endpoint, secret = await hooks.webhooks.create("acme", "https://example.com/a?b=1", (COMPLETED,))
    event = await hooks.happen()
    claim = await hooks.claim_one()
    assert (claim.url, claim.fence, claim.attempts, claim.event) == ("https://example.com/a?b=1", 1, 0, event)
    assert json.loads(claim.payload) == {"type": "finetune.completed", "text": "Grüße\0"}
    assert claim.payload.startswith(b'{"type":"finetune.completed","text":"Gr\xc3\xbc')
    assert SECRETS.open(endpoint.id, claim.secret) == secret
    assert claim.old_secret is None


async def test_an_event_that_is_told_twice_is_one(hooks: Hooks) -> None:
    await hooks.endpoint()
    for _ in range(2):
        await hooks.happen(id_="evt_same")
    assert len(await hooks.claim()) == 1
    assert len(await hooks.rows("webhook_events")) == 1


async def test_what_is_rolled_back_did_not_happen(hooks: Hooks) -> None:
    await hooks.endpoint()
    with pytest.raises(RuntimeError):
        async with hooks.database.write() as connection:
            await enqueue(connection, WebhookEvent("evt_1", "acme", COMPLETED, AT, {}))
            raise RuntimeError
    assert await hooks.claim() == ()
    assert await hooks.rows("webhook_events") == []


async def test_disabled_and_deleted_endpoints_are_told_nothing_new(hooks: Hooks) -> None:
    disabled, deleted = await hooks.endpoint(), await hooks.endpoint()
    await hooks.webhooks.change("acme", disabled, EndpointChange(enabled=False))
    await hooks.webhooks.delete("acme", deleted)
    await hooks.happen()
    assert await hooks.rows("webhook_deliveries") == []


async def test_a_claimed_delivery_is_given_to_nobody_until_its_lease_ends(hooks: Hooks) -> None:
    await hooks.endpoint()
    await hooks.happen()
    first = await hooks.claim_one()
    hooks.clock.time += LEASE_S - 0.1
    assert await hooks.claim() == ()
    hooks.clock.time += 0.2
    second = await hooks.claim_one()
    assert (second.parcel, second.fence) == (first.parcel, 2)


async def test_who_lost_its_lease_records_nothing(hooks: Hooks) -> None:
    endpoint = await hooks.endpoint()
    await hooks.happen()
    late = await hooks.claim_one()
    hooks.clock.time += LEASE_S
    current = await hooks.claim_one()
    await hooks.record(late, 500)
    [delivery] = await hooks.webhooks.deliveries("acme", endpoint)
    assert (delivery.status, delivery.attempts) == (DeliveryStatus.PENDING, 0)
    assert (await hooks.webhooks.get("acme", endpoint)).failing_since is None
    await hooks.record(current, 204)
    await hooks.record(late, 500)
    [delivery] = await hooks.webhooks.deliveries("acme", endpoint)
    assert (delivery.status, delivery.response_status) == (DeliveryStatus.SUCCEEDED, 204)


async def test_success_ends_a_delivery(hooks: Hooks) -> None:
    endpoint = await hooks.endpoint()
    event = await hooks.happen()
    claim = await hooks.claim_one()
    hooks.clock.time += 2
    assert await hooks.record(claim, 200) is None
    [delivery] = await hooks.webhooks.deliveries("acme", endpoint)
    assert (delivery.event, delivery.status, delivery.attempts) == (event, DeliveryStatus.SUCCEEDED, 1)
    assert (delivery.created_at, delivery.attempted_at, delivery.finished_at) == (AT, AT, AT + 2)
    assert (delivery.response_status, delivery.response_body, delivery.error) == (200, "answer", None)
    hooks.clock.time += 1e6
    assert await hooks.claim() == ()


async def test_a_failure_is_due_again_at_its_time(hooks: Hooks) -> None:
    endpoint = await hooks.endpoint()
    await hooks.happen()
    await hooks.record(await hooks.claim_one(), None, next_in_s=300, error="no connection could be made")
    [delivery] = await hooks.webhooks.deliveries("acme", endpoint)
    assert (delivery.status, delivery.attempts, delivery.next_at) == (DeliveryStatus.PENDING, 1, AT + 300)
    assert (delivery.response_status, delivery.response_body) == (None, None)
    assert delivery.error == "no connection could be made"
    hooks.clock.time += 299
    assert await hooks.claim() == ()
    hooks.clock.time += 1
    claim = await hooks.claim_one()
    assert (claim.attempts, claim.fence) == (1, 2)
    await hooks.record(claim, 500)
    [delivery] = await hooks.webhooks.deliveries("acme", endpoint)
    assert (delivery.status, delivery.attempts, delivery.next_at) == (DeliveryStatus.FAILED, 2, None)
    assert (delivery.response_status, delivery.error) == (500, None)


async def test_an_endpoint_fails_from_its_first_failure_to_its_next_success(hooks: Hooks) -> None:
    endpoint = await hooks.endpoint()
    for step, (status, since) in enumerate([(500, AT), (500, AT), (200, None), (404, AT + 30)]):
        hooks.clock.time = AT + 10 * step
        await hooks.happen()
        await hooks.record(await hooks.claim_one(), status)
        assert (await hooks.webhooks.get("acme", endpoint)).failing_since == since


async def test_gone_disables_an_endpoint_and_ends_what_is_pending(hooks: Hooks) -> None:
    endpoint, neighbour = await hooks.endpoint(), await hooks.endpoint(events=(FAILED,))
    await hooks.happen(type_=FAILED)
    for _ in range(3):
        await hooks.happen()
    first, second, *_ = [claim for claim in await hooks.claim() if claim.parcel.endpoint == endpoint]
    await hooks.happen()
    assert await hooks.record(first, 410) == "the endpoint answered 410 Gone"
    disabled = await hooks.webhooks.get("acme", endpoint)
    assert (disabled.disabled_at, disabled.disabled_reason) == (AT, "the endpoint answered 410 Gone")
    # What was being sent at that moment is recorded as it came, and not tried again.
    assert await hooks.record(second, 500, next_in_s=5) is None
    hooks.clock.time += LEASE_S
    [left] = await hooks.claim()  # the third died while it was sent; the neighbour goes on
    assert left.parcel.endpoint == neighbour
    deliveries = await hooks.webhooks.deliveries("acme", endpoint)
    assert {delivery.status for delivery in deliveries} == {DeliveryStatus.FAILED}
    assert sorted(str(delivery.error) for delivery in deliveries) == [
        "None",
        "None",
        "the endpoint was disabled",
        "the endpoint was disabled or deleted",
    ]


async def test_days_of_failure_disable_an_endpoint_when_an_event_has_had_all_of_its_attempts(hooks: Hooks) -> None:
    endpoint = await hooks.endpoint()
    await hooks.happen()
    await hooks.record(await hooks.claim_one(), 500)
    hooks.clock.time += 5 * 86400
    await hooks.happen()
    assert await hooks.record(await hooks.claim_one(), 500, next_in_s=5) is None
    hooks.clock.time += 5
    assert await hooks.record(await hooks.claim_one(), 500, next_in_s=5) is None
    [delivery, _] = await hooks.webhooks.deliveries("acme", endpoint)
    assert (delivery.status, delivery.attempts) == (DeliveryStatus.PENDING, 2)
    hooks.clock.time += 5
    assert await hooks.record(await hooks.claim_one(), 500) == "every delivery has failed for too long"
    assert not (await hooks.webhooks.get("acme", endpoint)).is_enabled


async def test_tests_that_fail_do_not_count(hooks: Hooks) -> None:
    endpoint = await hooks.endpoint()
    await hooks.webhooks.test("acme", endpoint)
    await hooks.record(await hooks.claim_one(), 500)
    assert (await hooks.webhooks.get("acme", endpoint)).failing_since is None
    await hooks.happen()
    await hooks.record(await hooks.claim_one(), 500)
    hooks.clock.time += 6 * 86400
    await hooks.webhooks.test("acme", endpoint)
    assert await hooks.record(await hooks.claim_one(), 500) is None
    assert (await hooks.webhooks.get("acme", endpoint)).is_enabled


async def test_an_endpoint_that_is_disabled_again_keeps_its_first_reason(hooks: Hooks) -> None:
    endpoint = await hooks.endpoint()
    for _ in range(2):
        await hooks.happen()
    first, second = await hooks.claim()
    await hooks.record(first, 410)
    hooks.clock.time += 1
    assert await hooks.record(second, 410) is None
    assert (await hooks.webhooks.get("acme", endpoint)).disabled_at == AT


async def test_an_endpoint_that_goes_while_an_event_is_added_is_told_nothing(hooks: Hooks) -> None:
    endpoint = await hooks.endpoint()
    await hooks.happen()
    # As if the event had been added by a transaction that saw the endpoint before it was deleted.
    async with hooks.database.write() as connection:
        await connection.execute(update(webhook_endpoints).values(deleted_at=AT))
    assert await hooks.claim() == []
    [row] = await hooks.rows("webhook_deliveries")
    assert (row["endpoint"], row["status"], row["next_at"], row["leased"]) == (endpoint, "failed", None, False)


async def test_no_more_are_claimed_than_there_is_room_for(hooks: Hooks) -> None:
    for _ in range(2):
        await hooks.endpoint()
    for _ in range(2 * MAX_SENDING_TO_ENDPOINT):
        await hooks.happen()
    hooks.clock.time += 1
    lonely = await hooks.endpoint("other")
    await hooks.happen("other")
    sending: list[Claim] = list(await hooks.claim())
    assert len(sending) == 2 * MAX_SENDING_TO_ENDPOINT + 1
    assert lonely in {claim.parcel.endpoint for claim in sending}
    assert await hooks.claim(sending=sending) == ()
    done = next(claim for claim in sending if claim.parcel.endpoint != lonely)
    await hooks.record(done)
    [more] = await hooks.claim(sending=[claim for claim in sending if claim is not done])
    assert more.parcel.endpoint == done.parcel.endpoint


async def test_no_account_fills_the_room(hooks: Hooks) -> None:
    for _ in range(MAX_SENDING_OF_ACCOUNT + 5):
        await hooks.endpoint()
    await hooks.endpoint("other")
    await hooks.happen()
    hooks.clock.time += 1
    await hooks.happen("other")
    claims = await hooks.claim()
    accounts = [claim.parcel.account for claim in claims]
    assert (accounts.count("acme"), accounts.count("other")) == (MAX_SENDING_OF_ACCOUNT, 1)
    assert await hooks.claim(sending=claims) == ()


async def test_racing_claims_share_what_is_due(hooks: Hooks) -> None:
    for _ in range(10):
        await hooks.endpoint()
    for _ in range(4):
        await hooks.happen()
    found = await asyncio.gather(*(hooks.claim() for _ in range(8)))
    while more := await hooks.claim():
        found.append(more)
    ids = [claim.parcel.id for claims in found for claim in claims]
    assert len(ids) == len(set(ids)) == 40


async def test_events_that_happen_while_an_endpoint_is_recorded_do_not_wait_for_each_other(hooks: Hooks) -> None:
    await hooks.endpoint()
    await hooks.happen()
    claim = await hooks.claim_one()
    await asyncio.gather(hooks.record(claim, 410), *(hooks.happen() for _ in range(20)))
    hooks.clock.time += 1
    for _ in range(20):  # those that came in time were ended, or end now, a few at once
        assert not await hooks.claim()
    assert {row["status"] for row in await hooks.rows("webhook_deliveries")} == {"failed"}


async def test_old_deliveries_events_and_deleted_endpoints_are_forgotten(hooks: Hooks) -> None:
    old, kept = await hooks.endpoint(), await hooks.endpoint(events=(FAILED,))
    await hooks.happen()
    await hooks.record(await hooks.claim_one())
    await hooks.webhooks.delete("acme", old)
    await hooks.happen("other")  # an event that nobody is told of
    pending = await hooks.happen(type_=FAILED)
    await hooks.outbox.forget(AT)
    assert len(await hooks.rows("webhook_events")) == 3
    hooks.clock.time += KEPT_FOR_S
    recent = await hooks.happen()
    await hooks.outbox.forget(AT + 1)
    assert {row["event"] for row in await hooks.rows("webhook_deliveries")} == {pending}
    assert {row["id"] for row in await hooks.rows("webhook_events")} == {pending, recent}
    assert {row["id"] for row in await hooks.rows("webhook_endpoints")} == {kept}
