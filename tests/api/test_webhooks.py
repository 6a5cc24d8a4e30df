"""Webhooks over HTTP, over a real database, and what receivers get of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import Any

import httpx
import openai
import pytest
from standardwebhooks import Webhook

from serve_app.config import DialectLimits, LimitsConfig, WebhooksConfig, WindowConfig
from serve_app.stores.database import open_database
from serve_app.stores.webhook_queue import SqlOutbox
from serve_app.use_cases.webhook_delivery import WebhookDelivery
from serve_app.use_cases.webhook_secrets import SealedSecrets
from serve_app.use_cases.webhooks import address_rules
from serve_app.webhook_sender import HttpSender, system_resolver
from tests.api.administration import PEPPER, Service, running_service
from tests.fake_fine_tuner import FakeFineTuner
from tests.webhook_receiver import Receiver, running_receiver, status

PATH = "/v1/aitextgen/webhooks"
CREATE = f"{PATH}/create"
URL = "https://example.com/hooks"
EVENTS = ["finetune.completed", "finetune.failed"]
LOCAL = WebhooksConfig(allowed_networks=(ip_network("127.0.0.0/8"),), timeout_s=60, retry_s=(0.01, 3600))


@asynccontextmanager
async def hooked(url: str, **parts: Any) -> AsyncIterator[tuple[Service, httpx.AsyncClient]]:
    """A service, and a client of the account `acme` that may fine-tune."""
    async with running_service(url, **parts) as service:
        key, _ = await service.new_key("acme", scopes=["fine-tune"])
        async with service.with_key(key) as client:
            yield service, client


@pytest.fixture
async def client(sqlite_url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with hooked(sqlite_url) as (_, client):
        yield client


@asynccontextmanager
async def delivering(url: str, config: WebhooksConfig = LOCAL) -> AsyncIterator[None]:
    """Another process delivers."""
    async with open_database(url) as database, system_resolver() as resolve:
        sender = HttpSender(address_rules(config), resolve, timeout_s=config.timeout_s)
        async with WebhookDelivery(SqlOutbox(database), sender, SealedSecrets(PEPPER), config).running():
            yield


async def create(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await client.post(CREATE, json={"url": URL, "events": EVENTS, **fields})
    assert response.status_code == 201, response.text
    created: dict[str, Any] = response.json()
    return created


async def test_documented_request_makes_a_webhook_whose_secret_is_shown_once(client: httpx.AsyncClient) -> None:
    response = await client.post(CREATE, json={"url": URL, "events": EVENTS})
    assert response.status_code == 201
    created = response.json()
    assert response.headers["location"] == f"{PATH}/{created['id']}"
    assert created["id"].startswith("whep_")
    assert Webhook(created["secret"])
    assert created == {
        "object": "webhook",
        "id": created["id"],
        "url": URL,
        "events": EVENTS,
        "status": "enabled",
        "created_at": created["created_at"],
        "failing_since": None,
        "disabled_at": None,
        "disabled_reason": None,
        "old_secret_valid_until": None,
        "secret": created["secret"],
    }
    del created["secret"]
    assert (await client.get(f"{PATH}/{created['id']}")).json() == created
    assert (await client.get(PATH)).json() == {"object": "list", "data": [created], "has_more": False, "next": None}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"events": EVENTS}, "url"),
        ({"url": "", "events": EVENTS}, "url"),
        ({"url": 1, "events": EVENTS}, "url"),
        ({"url": "http://example.com/", "events": EVENTS}, "url"),
        ({"url": "https://user:password@example.com/", "events": EVENTS}, "url"),
        ({"url": "https://169.254.169.254/", "events": EVENTS}, "url"),
        ({"url": "https://localhost/", "events": EVENTS}, "url"),
        ({"url": f"https://example.com/{'x' * 2048}", "events": EVENTS}, "url"),
        ({"url": URL}, "events"),
        ({"url": URL, "events": []}, "events"),
        ({"url": URL, "events": "finetune.completed"}, "events"),
        ({"url": URL, "events": ["finetune.completed", "finetune.exploded"]}, "events[1]"),
        ({"url": URL, "events": ["finetune.completed", None]}, "events[1]"),
        ({"url": URL, "events": EVENTS, "secret": "x"}, "secret"),
    ],
)
async def test_what_cannot_be_meant_is_refused_by_name(
    client: httpx.AsyncClient, body: dict[str, Any], param: str
) -> None:
    response = await client.post(CREATE, json=body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert (await client.get(PATH)).json()["data"] == []


async def test_unknown_events_are_told_which_ones_are_known(client: httpx.AsyncClient) -> None:
    response = await client.post(CREATE, json={"url": URL, "events": ["nothing"]})
    message = response.json()["error"]["message"]
    assert message.startswith("events[0] must be 'finetune.completed', 'finetune.failed'")


async def test_webhooks_are_listed_in_pages(client: httpx.AsyncClient) -> None:
    ids = [(await create(client))["id"] for _ in range(5)]
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        page = (await client.get(PATH, params=query)).json()
        seen += [webhook["id"] for webhook in page["data"]]
        if not page["has_more"]:
            break
        query["after"] = page["next"]
    assert sorted(seen) == sorted(ids)
    assert (await client.get(PATH, params={"limit": 0})).json()["error"]["param"] == "limit"


async def test_changes(client: httpx.AsyncClient) -> None:
    path = f"{PATH}/{(await create(client))['id']}"
    before = (await client.get(path)).json()
    assert (await client.patch(path, json={})).json() == before
    changed = (await client.patch(path, json={"url": f"{URL}/2", "events": ["finetune.failed"]})).json()
    assert changed == {**before, "url": f"{URL}/2", "events": ["finetune.failed"]}
    disabled = (await client.patch(path, json={"status": "disabled"})).json()
    assert (disabled["status"], disabled["disabled_reason"]) == ("disabled", "it was disabled by its owner")
    refused = await client.post(f"{path}/test")
    assert refused.status_code == 400
    assert "disabled" in refused.json()["error"]["message"]
    assert (await client.patch(path, json={"status": "enabled"})).json() == changed
    for body, param in (
        ({"url": "http://example.com/"}, "url"),
        ({"events": ["no"]}, "events[0]"),
        ({"status": "gone"}, "status"),
    ):
        response = await client.patch(path, json=body)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_a_deleted_webhook_is_gone(client: httpx.AsyncClient) -> None:
    webhook = await create(client)
    path = f"{PATH}/{webhook['id']}"
    assert (await client.delete(path)).json() == {"object": "webhook", "id": webhook["id"], "deleted": True}
    assert (await client.delete(path)).status_code == 404
    assert (await client.get(path)).status_code == 404
    assert (await client.get(PATH)).json()["data"] == []


async def test_rotating_shows_a_new_secret_and_for_how_long_the_old_one_signs(client: httpx.AsyncClient) -> None:
    webhook = await create(client)
    path = f"{PATH}/{webhook['id']}/rotate-secret"
    for asked in ({}, {"json": {}}, {"json": {"overlap_s": 3600}}):
        response = await client.post(path, **asked)
        assert response.status_code == 201, response.text
        rotated = response.json()
        assert rotated["secret"] != webhook["secret"]
        assert rotated["old_secret_valid_until"] is not None
    assert rotated["id"] == webhook["id"]
    refused = await client.post(path, json={"overlap_s": -1})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "overlap_s")


async def test_an_account_has_a_bounded_number_of_webhooks(sqlite_url: str) -> None:
    async with hooked(sqlite_url, webhooks=WebhooksConfig(max_endpoints=1)) as (_, client):
        await create(client)
        response = await client.post(CREATE, json={"url": URL, "events": EVENTS})
        assert response.status_code == 400
        assert "delete one" in response.json()["error"]["message"]


async def test_a_request_that_is_repeated_makes_one_webhook_with_one_secret(client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "once"}
    body = {"url": URL, "events": EVENTS}
    first, second = [await client.post(CREATE, json=body, headers=headers) for _ in range(2)]
    assert first.json() == second.json()
    assert second.headers["idempotent-replayed"] == "true"
    assert len((await client.get(PATH)).json()["data"]) == 1
    other = await client.post(CREATE, json={**body, "url": f"{URL}/2"}, headers=headers)
    assert other.status_code == 422


async def test_posts_count_in_the_windows_of_the_api(sqlite_url: str) -> None:
    limits = LimitsConfig(aitextgen=DialectLimits(windows=(WindowConfig(name="minute", quota=6, period_s=60),)))
    async with hooked(sqlite_url, limits=limits) as (_, client):
        created = await client.post(CREATE, json={"url": URL, "events": EVENTS})
        assert created.headers["x-ratelimit-remaining"] == "5"
        path = f"{PATH}/{created.json()['id']}"
        assert "x-ratelimit-remaining" not in (await client.get(path)).headers
        test = await client.post(f"{path}/test")
        assert test.headers["x-ratelimit-remaining"] == "4"
        replay = await client.post(f"{path}/deliveries/{test.json()['id']}/replay")
        assert replay.headers["x-ratelimit-remaining"] == "3"
        assert (await client.post(f"{path}/rotate-secret")).headers["x-ratelimit-remaining"] == "2"
        assert (await client.post(CREATE, json={})).headers["x-ratelimit-remaining"] == "1"
        assert (await client.post(f"{PATH}/unknown/test")).headers["x-ratelimit-remaining"] == "0"
        assert (await client.post(f"{path}/test")).status_code == 429


async def test_only_a_key_that_may_fine_tune_sees_webhooks(sqlite_url: str) -> None:
    async with hooked(sqlite_url) as (service, _):
        response = await service.client.post(CREATE, json={"url": URL, "events": EVENTS})
        assert response.status_code == 403
        assert "fine-tune" in response.json()["error"]["message"]


async def test_webhooks_of_another_account_are_not_there(sqlite_url: str) -> None:
    async with hooked(sqlite_url) as (service, client):
        path = f"{PATH}/{(await create(client))['id']}"
        delivery = (await client.post(f"{path}/test")).json()
        stranger = service.admin  # of the account `operator`, with every scope
        for method, tail in (
            ("GET", ""),
            ("PATCH", ""),
            ("DELETE", ""),
            ("POST", "/rotate-secret"),
            ("POST", "/test"),
            ("GET", "/deliveries"),
            ("GET", f"/deliveries/{delivery['id']}"),
            ("POST", f"/deliveries/{delivery['id']}/replay"),
        ):
            response = await stranger.request(method, path + tail, json={})
            assert response.status_code == 404, (method, tail)
        assert (await stranger.get(PATH)).json()["data"] == []
        assert (await client.get(f"{path}/deliveries/{delivery['id']}")).json() == delivery


async def test_a_test_event_reaches_the_receiver_and_verifies(sqlite_url: str) -> None:
    async with (
        running_receiver() as receiver,
        hooked(sqlite_url, webhooks=LOCAL) as (_, client),
        delivering(sqlite_url),
    ):
        receiver.answer = status(200, b"thank you")
        webhook = await create(client, url=receiver.url("/in?token=1"), events=["finetune.completed"])
        path = f"{PATH}/{webhook['id']}"
        response = await client.post(f"{path}/test")
        assert response.status_code == 201
        assert response.headers["location"] == f"{path}/deliveries/{response.json()['id']}"
        assert (response.json()["type"], response.json()["status"]) == ("webhook.test", "pending")
        [request] = await receiver.wait_for(1)
        payload = Webhook(webhook["secret"]).verify(request.body, request.headers)
        with openai.OpenAI(api_key="none", webhook_secret=webhook["secret"]) as verifier:
            assert verifier.webhooks.unwrap(request.body, request.headers).type == "webhook.test"
        assert payload["type"] == "webhook.test"
        assert payload["id"] == request.headers["webhook-id"] == response.json()["event"]
        assert payload["data"] == {"webhook_id": webhook["id"]}
        assert request.path == "/in?token=1"
        delivery = await finished(client, f"{path}/deliveries/{response.json()['id']}")
        assert (delivery["status"], delivery["attempts"]) == ("succeeded", 1)
        assert delivery["response"] == {"status": 200, "body": "thank you"}
        assert (await client.get(f"{path}/deliveries")).json()["data"] == [delivery]


async def finished(client: httpx.AsyncClient, path: str) -> dict[str, Any]:
    """The delivery, once it has ended."""
    async with asyncio.timeout(20):
        while True:
            delivery: dict[str, Any] = (await client.get(path)).json()
            if delivery["finished_at"] is not None:
                return delivery
            await asyncio.sleep(0.02)


async def test_the_end_of_a_job_is_told_in_both_vocabularies_to_who_asked_for_it(sqlite_url: str) -> None:
    async with (
        running_receiver() as receiver,
        hooked(sqlite_url, webhooks=LOCAL, fine_tuner=FakeFineTuner()) as (_, client),
        delivering(sqlite_url),
    ):

        async def refuse_the_first_attempt(writer: asyncio.StreamWriter) -> None:
            event = receiver.received[-1].headers["webhook-id"]
            attempts = [request for request in receiver.received if request.headers["webhook-id"] == event]
            await status(500 if len(attempts) == 1 else 204)(writer)

        receiver.answer = refuse_the_first_attempt
        events = ["finetune.completed", "fine_tuning.job.succeeded"]
        webhook = await create(client, url=receiver.url(), events=events)
        await create(client, url=receiver.url("/other"), events=["finetune.failed"])
        trained = await client.post("/v1/aitextgen/finetune", json={"training_data": ["Once upon a time."]})
        assert trained.status_code == 200, trained.text
        requests = await receiver.wait_for(4)
        assert {request.path for request in requests} == {"/hooks"}
        verified: dict[str, Any] = {}
        for request in requests:
            payload = Webhook(webhook["secret"]).verify(request.body, request.headers)
            verified[payload["type"]] = payload
            with openai.OpenAI(api_key="none", webhook_secret=webhook["secret"]) as verifier:
                assert verifier.webhooks.unwrap(request.body, request.headers)
        assert set(verified) == set(events)
        assert verified["finetune.completed"]["data"].items() >= trained.json().items()
        assert len({request.headers["webhook-id"] for request in requests}) == 2
        with openai.OpenAI(api_key="none", webhook_secret=webhook["secret"]) as verifier:
            *_, request = [request for request in requests if b"fine_tuning.job" in request.body]
            event = verifier.webhooks.unwrap(request.body, request.headers)
        assert event.type == "fine_tuning.job.succeeded"
        assert event.data.id == verified["finetune.completed"]["data"]["job_id"]


async def test_a_failed_delivery_is_sent_again_when_its_owner_asks(sqlite_url: str) -> None:
    async with (
        running_receiver() as receiver,
        hooked(sqlite_url, webhooks=LOCAL) as (_, client),
        delivering(sqlite_url),
    ):
        receiver.answers = [status(503, b"\xff\0closed " + b"x" * 2000)]
        webhook = await create(client, url=receiver.url())
        deliveries = f"{PATH}/{webhook['id']}/deliveries"
        delivery = (await client.post(f"{PATH}/{webhook['id']}/test")).json()
        path = f"{deliveries}/{delivery['id']}"
        failed = await finished(client, path)
        assert (failed["status"], failed["response"]["status"]) == ("failed", 503)
        assert failed["response"]["body"].startswith("\ufffd\ufffdclosed ")
        assert len(failed["response"]["body"]) == 1024
        replayed = await client.post(f"{path}/replay")
        assert replayed.status_code == 200
        assert (replayed.json()["status"], replayed.json()["finished_at"]) == ("pending", None)
        first, second = await receiver.wait_for(2)
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        assert first.body == second.body
        assert (await finished(client, path))["status"] == "succeeded"
        assert (await client.post(f"{deliveries}/unknown/replay")).status_code == 404


async def test_gone_disables_a_webhook_until_its_owner_enables_it(sqlite_url: str) -> None:
    async with (
        running_receiver() as receiver,
        hooked(sqlite_url, webhooks=LOCAL) as (_, client),
        delivering(sqlite_url),
    ):
        receiver.answers = [status(410)]
        webhook = await create(client, url=receiver.url())
        path = f"{PATH}/{webhook['id']}"
        delivery = (await client.post(f"{path}/test")).json()
        await finished(client, f"{path}/deliveries/{delivery['id']}")
        disabled = (await client.get(path)).json()
        assert (disabled["status"], disabled["disabled_reason"]) == ("disabled", "the endpoint answered 410 Gone")
        assert (await client.patch(path, json={"status": "enabled"})).json()["failing_since"] is None
        await client.post(f"{path}/test")
        assert len(await receiver.wait_for(2)) == 2


async def test_an_address_that_is_not_public_is_told_of_and_not_called(sqlite_url: str, receiver: Receiver) -> None:
    """The service may be configured more strictly than when the webhook was made, and names may change."""
    async with hooked(sqlite_url, webhooks=LOCAL) as (_, client), delivering(sqlite_url, WebhooksConfig()):
        webhook = await create(client, url=f"https://localhost:{receiver.port}/")
        delivery = (await client.post(f"{PATH}/{webhook['id']}/test")).json()
        failed = await finished(client, f"{PATH}/{webhook['id']}/deliveries/{delivery['id']}")
        assert (failed["status"], failed["response"]) == ("failed", None)
        assert failed["error"] is not None
        assert receiver.num_connections == 0


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with running_receiver() as running:
        yield running
