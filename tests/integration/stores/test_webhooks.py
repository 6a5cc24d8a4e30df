"""Endpoints of accounts: bounds, changes, secrets, replays; on both databases."""

import asyncio

import pytest

from deployments.errors import InvalidRequest, NotFound
from serve_app.stores.database import Database
from serve_app.use_cases.webhooks import EndpointChange
from serve_app.webhooks.endpoint import DeliveryStatus
from serve_app.webhooks.event import EventType
from tests.integration.stores.webhook_rows import AT, COMPLETED, FAILED, LEASE_S, SECRETS, Hooks, make_hooks


@pytest.fixture
async def hooks(database: Database) -> Hooks:
    return await make_hooks(database)


async def test_an_endpoint_is_kept_as_it_was_created(hooks: Hooks) -> None:
    created, _ = await hooks.webhooks.create("acme", "https://example.com/", (FAILED, COMPLETED, FAILED))
    assert created.events == (FAILED, COMPLETED)
    assert await hooks.webhooks.get("acme", created.id) == created
    assert await hooks.webhooks.list("acme") == [created]


async def test_the_database_does_not_hold_a_readable_secret(hooks: Hooks) -> None:
    endpoint, secret = await hooks.webhooks.create("acme", "https://example.com/", (COMPLETED,))
    [row] = await hooks.rows("webhook_endpoints")
    assert secret.encode() not in row["secret"]
    assert secret not in str(row)
    assert SECRETS.open(endpoint.id, row["secret"]) == secret


async def test_others_find_nothing(hooks: Hooks) -> None:
    endpoint = await hooks.endpoint()
    delivery = (await hooks.webhooks.test("acme", endpoint)).id
    webhooks = hooks.webhooks
    for asked in (
        lambda: webhooks.get("other", endpoint),
        lambda: webhooks.change("other", endpoint, EndpointChange(enabled=False)),
        lambda: webhooks.rotate("other", endpoint),
        lambda: webhooks.delete("other", endpoint),
        lambda: webhooks.test("other", endpoint),
        lambda: webhooks.deliveries("other", endpoint),
        lambda: webhooks.delivery("other", endpoint, delivery),
        lambda: webhooks.replay("other", endpoint, delivery),
    ):
        with pytest.raises(NotFound):
            await asked()
    assert await webhooks.list("other") == []
    assert (await webhooks.get("acme", endpoint)).is_enabled
    own = await hooks.endpoint("other")
    for asked in (
        lambda: webhooks.delivery("other", own, delivery),
        lambda: webhooks.replay("other", own, delivery),
    ):
        with pytest.raises(NotFound):
            await asked()
    assert await webhooks.list("other", after=endpoint) == []


async def test_an_account_has_a_bounded_number_of_endpoints_even_when_many_are_made_at_once(
    database: Database,
) -> None:
    hooks = await make_hooks(database, max_endpoints=3)
    made = await asyncio.gather(*(hooks.endpoint() for _ in range(6)), return_exceptions=True)
    ids = [endpoint for endpoint in made if isinstance(endpoint, str)]
    assert len(ids) == 3
    assert {type(error) for error in made if not isinstance(error, str)} == {InvalidRequest}
    await hooks.endpoint("other")
    await hooks.webhooks.delete("acme", ids[0])
    assert await hooks.endpoint()


async def test_lists_have_the_newest_first_and_go_on_after_one(hooks: Hooks) -> None:
    ids = []
    for _ in range(5):
        ids.append(await hooks.endpoint())
        hooks.clock.time += 1
    ids.reverse()
    assert [endpoint.id for endpoint in await hooks.webhooks.list("acme", limit=3)] == ids[:3]
    assert [endpoint.id for endpoint in await hooks.webhooks.list("acme", after=ids[2])] == ids[3:]
    deliveries = []
    for _ in range(5):
        deliveries.append((await hooks.webhooks.test("acme", ids[0])).id)
        hooks.clock.time += 1
    deliveries.reverse()
    page = await hooks.webhooks.deliveries("acme", ids[0], after=deliveries[1], limit=2)
    assert [delivery.id for delivery in page] == deliveries[2:4]


async def test_changes_take_effect_on_what_comes_next(hooks: Hooks) -> None:
    endpoint = await hooks.endpoint()
    changed = await hooks.webhooks.change(
        "acme", endpoint, EndpointChange(url="https://other.example/", events=[FAILED, FAILED])
    )
    assert (changed.url, changed.events) == ("https://other.example/", (FAILED,))
    assert await hooks.webhooks.get("acme", endpoint) == changed
    await hooks.happen()
    await hooks.happen(type_=FAILED)
    claim = await hooks.claim_one()
    assert (claim.type, claim.url) == (FAILED, "https://other.example/")


async def test_disabling_ends_what_is_pending_and_enabling_begins_anew(hooks: Hooks) -> None:
    endpoint = await hooks.endpoint()
    await hooks.happen()
    await hooks.record(await hooks.claim_one(), 500, next_in_s=5)
    disabled = await hooks.webhooks.change("acme", endpoint, EndpointChange(enabled=False))
    assert (disabled.disabled_at, disabled.disabled_reason) == (AT, "it was disabled by its owner")
    [delivery] = await hooks.webhooks.deliveries("acme", endpoint)
    assert (delivery.status, delivery.error) == (DeliveryStatus.FAILED, "the endpoint was disabled")
    for refused in (hooks.webhooks.test, lambda *place: hooks.webhooks.replay(*place, delivery.id)):
        with pytest.raises(InvalidRequest, match="disabled"):
            await refused("acme", endpoint)
    assert await hooks.webhooks.change("acme", endpoint, EndpointChange(enabled=False)) == disabled
    enabled = await hooks.webhooks.change("acme", endpoint, EndpointChange(enabled=True))
    assert (enabled.disabled_at, enabled.disabled_reason, enabled.failing_since) == (None, None, None)
    await hooks.happen()
    assert (await hooks.claim_one()).parcel.endpoint == endpoint


async def test_deleting_forgets_the_secrets_and_ends_what_is_pending(hooks: Hooks) -> None:
    endpoint = await hooks.endpoint()
    await hooks.webhooks.rotate("acme", endpoint)
    await hooks.happen()
    await hooks.webhooks.delete("acme", endpoint)
    assert await hooks.claim() == ()
    with pytest.raises(NotFound):
        await hooks.webhooks.get("acme", endpoint)
    with pytest.raises(NotFound):
        await hooks.webhooks.delete("acme", endpoint)
    assert await hooks.webhooks.list("acme") == []
    [row] = await hooks.rows("webhook_endpoints")
    assert (row["secret"], row["old_secret"]) == (b"", None)
    [delivery] = await hooks.rows("webhook_deliveries")
    assert (delivery["status"], delivery["error"]) == ("failed", "the endpoint was deleted")


async def test_after_a_rotation_the_last_two_secrets_are_there(hooks: Hooks) -> None:
    endpoint, first = await hooks.webhooks.create("acme", "https://example.com/", (COMPLETED,))
    rotated, second = await hooks.webhooks.rotate("acme", endpoint.id, overlap_s=60)
    assert rotated.old_secret_until == AT + 60
    await hooks.happen()
    claim = await hooks.claim_one()
    assert claim.old_secret is not None
    assert [SECRETS.open(endpoint.id, sealed) for sealed in (claim.secret, claim.old_secret)] == [second, first]
    assert claim.old_secret_until == AT + 60
    again, third = await hooks.webhooks.rotate("acme", endpoint.id)
    assert again.old_secret_until == AT + 86400
    [row] = await hooks.rows("webhook_endpoints")
    assert [SECRETS.open(endpoint.id, row[name]) for name in ("secret", "old_secret")] == [third, second]


async def test_a_test_goes_to_one_endpoint_whatever_it_subscribed_to(hooks: Hooks) -> None:
    endpoint, _ = await hooks.endpoint(), await hooks.endpoint()
    delivery = await hooks.webhooks.test("acme", endpoint)
    assert (delivery.type, delivery.status, delivery.next_at) == (EventType.TEST, DeliveryStatus.PENDING, AT)
    claim = await hooks.claim_one()
    assert (claim.parcel.id, claim.parcel.endpoint, claim.event) == (delivery.id, endpoint, delivery.event)


@pytest.mark.parametrize("status", [200, 500])
async def test_what_has_ended_is_sent_again_under_its_id(hooks: Hooks, status: int) -> None:
    endpoint = await hooks.endpoint()
    event = await hooks.happen()
    await hooks.record(await hooks.claim_one(), status)
    [ended] = await hooks.webhooks.deliveries("acme", endpoint)
    hooks.clock.time += 1e5
    again = await hooks.webhooks.replay("acme", endpoint, ended.id)
    assert (again.status, again.attempts, again.next_at) == (DeliveryStatus.PENDING, 0, AT + 1e5)
    assert again.finished_at is None
    claim = await hooks.claim_one()
    assert (claim.parcel.id, claim.event, claim.attempts) == (ended.id, event, 0)


async def test_what_waits_for_its_next_attempt_need_not_wait(hooks: Hooks) -> None:
    endpoint = await hooks.endpoint()
    await hooks.happen()
    claim = await hooks.claim_one()
    await hooks.record(claim, 500, next_in_s=36000)
    await hooks.webhooks.replay("acme", endpoint, claim.parcel.id)
    assert (await hooks.claim_one()).attempts == 0


async def test_what_is_being_sent_is_not_sent_twice_by_a_replay(hooks: Hooks) -> None:
    endpoint = await hooks.endpoint()
    await hooks.happen()
    claim = await hooks.claim_one()
    replayed = await hooks.webhooks.replay("acme", endpoint, claim.parcel.id)
    assert (replayed.leased, replayed.next_at) == (True, AT + LEASE_S)
    assert await hooks.claim() == ()
    await hooks.record(claim, 204)
    [delivery] = await hooks.webhooks.deliveries("acme", endpoint)
    assert delivery.status is DeliveryStatus.SUCCEEDED


async def test_a_delivery_that_is_not_there_is_not_found(hooks: Hooks) -> None:
    endpoint = await hooks.endpoint()
    for asked in (hooks.webhooks.delivery, hooks.webhooks.replay):
        with pytest.raises(NotFound):
            await asked("acme", endpoint, "whd_unknown")
    with pytest.raises(NotFound):
        await hooks.webhooks.deliveries("acme", "whep_unknown")
