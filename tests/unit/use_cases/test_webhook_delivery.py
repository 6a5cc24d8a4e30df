"""One process delivers: what it sends, what it records, and that nothing slow or broken holds up the rest."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from deployments.errors import StorageError
from serve_app.config import WebhooksConfig
from serve_app.use_cases import webhook_delivery
from serve_app.use_cases.webhook_delivery import Claim, Receipt, Undeliverable, WebhookDelivery
from serve_app.use_cases.webhook_secrets import SealedSecrets
from serve_app.webhooks.attempt import Attempt
from serve_app.webhooks.event import EventType
from serve_app.webhooks.sharing import MAX_SENDING, MAX_SENDING_TO_ENDPOINT, Parcel, choose
from serve_app.webhooks.signing import new_secret
from tests.recording_meter import RecordingMeter

CONFIG = WebhooksConfig(timeout_s=10)
SECRETS = SealedSecrets(b"a pepper of 32 bytes for the tests")
SECRET, OLD_SECRET = new_secret(), new_secret()
BODY = b'{"type":"finetune.completed"}'


class Clock:
    def __init__(self) -> None:
        self.time = time.time()

    def __call__(self) -> float:
        return self.time


class FakeOutbox:
    """Deliveries that are due once; `claim_errors` and `record_errors` are raised first, one a call."""

    def __init__(self, *due: Claim) -> None:
        self.due = list(due)
        self.recorded: list[tuple[Claim, Attempt, float | None]] = []
        self.disable_failing_since: list[float] = []
        self.leases: list[float] = []
        self.claim_errors: list[Exception] = []
        self.record_errors: list[Exception] = []
        self.forgotten: list[float] = []
        self.news = asyncio.Event()

    async def claim(self, now: float, lease_until: float, sending: Collection[Parcel]) -> Sequence[Claim]:
        if self.claim_errors:
            raise self.claim_errors.pop(0)
        self.leases.append(lease_until - now)
        chosen = choose([claim.parcel for claim in self.due], sending)
        claims = [claim for claim in self.due if claim.parcel in chosen]
        self.due = [claim for claim in self.due if claim.parcel not in chosen]
        return claims

    async def record(
        self, claim: Claim, attempt: Attempt, next_at: float | None, *, disable_failing_since: float
    ) -> str | None:
        if self.record_errors:
            raise self.record_errors.pop(0)
        self.recorded.append((claim, attempt, next_at))
        self.disable_failing_since.append(disable_failing_since)
        self.news.set()
        return "the endpoint answered 410 Gone" if attempt.is_gone else None

    async def forget(self, before: float) -> None:
        self.forgotten.append(before)

    async def wait_for(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.recorded) < count:
                self.news.clear()
                await self.news.wait()


class FakeSender:
    """Answers 204, or as `answers` says for the URL; knows what was sent, and how much at the same time."""

    def __init__(self) -> None:
        self.answers: dict[str, Receipt | Exception | asyncio.Event] = {}
        self.sent: list[tuple[str, dict[str, str], bytes]] = []
        self.running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.most_in_all = 0

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Receipt:
        self.sent.append((url, dict(headers), body))
        self.running[url] += 1
        self.most[url] = max(self.most[url], self.running[url])
        self.most_in_all = max(self.most_in_all, self.running.total())
        try:
            await asyncio.sleep(0)
            answer = self.answers.get(url, Receipt(204, b"", None))
            if isinstance(answer, asyncio.Event):
                await answer.wait()
                answer = Receipt(200, b"", None)
            if isinstance(answer, Exception):
                raise answer
            return answer
        finally:
            self.running[url] -= 1


def make_claim(number: int = 0, *, endpoint: str = "whep_1", account: str = "acme", attempts: int = 0) -> Claim:
    return Claim(
        parcel=Parcel(f"whd_{number}", account, endpoint),
        fence=1,
        attempts=attempts,
        url=f"https://{endpoint}.example/",
        secret=SECRETS.seal(endpoint, SECRET),
        old_secret=None,
        old_secret_until=None,
        event=f"evt_{number}",
        type=EventType.FINETUNE_COMPLETED,
        payload=BODY,
    )


@pytest.fixture
def sender() -> FakeSender:
    return FakeSender()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def deliver(
    sender: FakeSender, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> Callable[[FakeOutbox], WebhookDelivery]:
    monkeypatch.setattr(webhook_delivery, "_RECORD_RETRY_S", 0)
    monkeypatch.setattr(webhook_delivery, "_POLL_S", 0.01)
    return lambda outbox: WebhookDelivery(
        outbox, sender, SECRETS, CONFIG, now=clock, monotonic=clock, chance=lambda: 0.5
    )


Deliver = Callable[[FakeOutbox], WebhookDelivery]


async def once(delivery: WebhookDelivery, outbox: FakeOutbox, count: int = 1) -> None:
    """Sends what is due, and waits until so much is recorded."""
    await delivery.start_due()
    await outbox.wait_for(count)


async def test_what_is_sent_is_signed_for_the_time_of_the_attempt(
    deliver: Deliver, sender: FakeSender, clock: Clock
) -> None:
    outbox = FakeOutbox(make_claim())
    await once(deliver(outbox), outbox)
    [(url, headers, body)] = sender.sent
    assert (url, body) == ("https://whep_1.example/", BODY)
    assert Webhook(SECRET).verify(body, headers) == json.loads(BODY)
    assert headers["webhook-id"] == "evt_0"
    assert headers["webhook-timestamp"] == str(int(clock.time))
    [(claim, attempt, next_at)] = outbox.recorded
    assert (claim.parcel.id, attempt.status, next_at) == ("whd_0", 204, None)


async def test_during_a_rotation_both_secrets_sign_and_later_the_new_one(
    deliver: Deliver, sender: FakeSender, clock: Clock
) -> None:
    rotated = replace(make_claim(), old_secret=SECRETS.seal("whep_1", OLD_SECRET), old_secret_until=clock.time + 60)
    outbox = FakeOutbox(rotated)
    await once(deliver(outbox), outbox)
    for secret in (SECRET, OLD_SECRET):
        Webhook(secret).verify(BODY, sender.sent[0][1])
    outbox = FakeOutbox(replace(rotated, old_secret_until=clock.time))
    await once(deliver(outbox), outbox)
    Webhook(SECRET).verify(BODY, sender.sent[1][1])
    with pytest.raises(WebhookVerificationError):
        Webhook(OLD_SECRET).verify(BODY, sender.sent[1][1])


async def test_failures_are_due_again_by_the_schedule(deliver: Deliver, sender: FakeSender, clock: Clock) -> None:
    claims = [make_claim(attempts, endpoint=f"whep_{attempts}", attempts=attempts) for attempts in range(10)]
    for claim in claims:
        sender.answers[claim.url] = Receipt(500, b"broken", None)
    outbox = FakeOutbox(*claims)
    await once(deliver(outbox), outbox, 10)
    pauses = {
        claim.attempts: None if next_at is None else pytest.approx(next_at - clock.time)
        for claim, _, next_at in outbox.recorded
    }
    assert pauses == {**dict(enumerate(CONFIG.retry_s)), 9: None}
    assert {attempt.body for _, attempt, _ in outbox.recorded} == {"broken"}


async def test_a_receiver_that_asks_for_time_gets_it(deliver: Deliver, sender: FakeSender, clock: Clock) -> None:
    sender.answers["https://whep_1.example/"] = Receipt(429, b"", "90")
    outbox = FakeOutbox(make_claim())
    await once(deliver(outbox), outbox)
    [(_, _, next_at)] = outbox.recorded
    assert next_at == clock.time + 90


async def test_why_there_was_no_response_is_recorded(deliver: Deliver, sender: FakeSender) -> None:
    sender.answers["https://whep_1.example/"] = Undeliverable("no connection could be made")
    outbox = FakeOutbox(make_claim())
    await once(deliver(outbox), outbox)
    [(_, attempt, next_at)] = outbox.recorded
    assert (attempt.status, attempt.error) == (None, "no connection could be made")
    assert next_at is not None


async def test_an_unforeseen_failure_is_one_more_failure(
    deliver: Deliver, sender: FakeSender, caplog: pytest.LogCaptureFixture
) -> None:
    sender.answers["https://whep_1.example/"] = KeyError("secret")
    outbox = FakeOutbox(make_claim())
    await once(deliver(outbox), outbox)
    [(_, attempt, next_at)] = outbox.recorded
    assert attempt.error == "something went wrong on our side"
    assert next_at is not None
    assert "KeyError" in caplog.text and "secret" not in caplog.text


async def test_a_test_is_sent_once(deliver: Deliver, sender: FakeSender) -> None:
    sender.answers["https://whep_1.example/"] = Receipt(500, b"", None)
    outbox = FakeOutbox(replace(make_claim(), type=EventType.TEST))
    await once(deliver(outbox), outbox)
    [(_, attempt, next_at)] = outbox.recorded
    assert (attempt.status, next_at) == (500, None)


async def test_a_secret_that_cannot_be_read_is_told_of_and_nothing_is_sent(
    deliver: Deliver, sender: FakeSender
) -> None:
    outbox = FakeOutbox(replace(make_claim(), secret=SECRETS.seal("whep_2", SECRET)))
    await once(deliver(outbox), outbox)
    [(_, attempt, next_at)] = outbox.recorded
    assert attempt.error is not None and "rotate" in attempt.error
    assert next_at is not None
    assert sender.sent == []


async def test_a_lease_outlasts_the_attempt_and_a_late_start_is_none(
    deliver: Deliver, sender: FakeSender, clock: Clock
) -> None:
    outbox = FakeOutbox(make_claim())
    delivery = deliver(outbox)
    await delivery.start_due()
    assert outbox.leases == [CONFIG.timeout_s + webhook_delivery.LEASE_MARGIN_S]
    clock.time += webhook_delivery.LEASE_MARGIN_S  # before the task has run: the process was held up
    for _ in range(5):
        await asyncio.sleep(0)
    assert sender.sent == []
    assert outbox.recorded == []


async def test_what_came_of_it_is_recorded_as_soon_as_the_database_answers(deliver: Deliver) -> None:
    outbox = FakeOutbox(make_claim())
    outbox.record_errors = [StorageError("away"), StorageError("away")]
    await once(deliver(outbox), outbox)
    assert len(outbox.recorded) == 1


async def test_nothing_is_recorded_after_the_lease(
    deliver: Deliver, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = FakeOutbox(make_claim())
    outbox.record_errors = [StorageError("away")]
    delivery = deliver(outbox)
    gone = asyncio.Event()

    async def fail(*_: object, **__: object) -> str | None:
        clock.time += CONFIG.timeout_s + webhook_delivery.LEASE_MARGIN_S
        gone.set()
        raise StorageError("away")

    outbox.record = fail  # type: ignore[method-assign]
    await delivery.start_due()
    await gone.wait()
    for _ in range(5):
        await asyncio.sleep(0)
    assert "failed with StorageError" in caplog.text


async def test_endpoints_are_disabled_after_days_of_failure_and_that_is_logged(
    deliver: Deliver, sender: FakeSender, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    sender.answers["https://whep_1.example/"] = Receipt(410, b"", None)
    outbox = FakeOutbox(make_claim())
    await once(deliver(outbox), outbox)
    await asyncio.sleep(0)
    assert outbox.disable_failing_since == [clock.time - CONFIG.disable_after_s]
    assert "whep_1 is disabled: the endpoint answered 410 Gone" in caplog.text


async def test_slow_endpoints_hold_nobody_up(deliver: Deliver, sender: FakeSender) -> None:
    never = asyncio.Event()
    slow = [make_claim(number, endpoint="slow") for number in range(200)]
    quick = [make_claim(1000 + number, endpoint=f"quick-{number}", account="other") for number in range(100)]
    sender.answers["https://slow.example/"] = never
    outbox = FakeOutbox(*slow, *quick)
    delivery = deliver(outbox)
    async with delivery.running():
        await outbox.wait_for(100)
        assert all(claim.parcel.account == "other" for claim, _, _ in outbox.recorded)
        assert sender.running["https://slow.example/"] == MAX_SENDING_TO_ENDPOINT
        never.set()
        await outbox.wait_for(300)
    assert sender.most["https://slow.example/"] == MAX_SENDING_TO_ENDPOINT


async def test_no_more_than_the_bound_are_sent_at_the_same_time(deliver: Deliver, sender: FakeSender) -> None:
    outbox = FakeOutbox(
        *(make_claim(number, endpoint=f"whep_{number}", account=f"account-{number}") for number in range(300))
    )
    async with deliver(outbox).running():
        await outbox.wait_for(300)
    assert sender.most_in_all == MAX_SENDING
    assert len(sender.sent) == 300


async def test_an_outage_of_the_database_is_waited_through(deliver: Deliver, caplog: pytest.LogCaptureFixture) -> None:
    outbox = FakeOutbox(make_claim())
    outbox.claim_errors = [StorageError("away"), StorageError("away")]
    async with deliver(outbox).running():
        await outbox.wait_for(1)
    assert "webhooks are not delivered" in caplog.text


async def test_a_nudge_is_heard_at_once(deliver: Deliver, monkeypatch: pytest.MonkeyPatch, sender: FakeSender) -> None:
    monkeypatch.setattr(webhook_delivery, "_POLL_S", 3600)
    outbox = FakeOutbox()
    delivery = deliver(outbox)
    async with delivery.running():
        while not outbox.leases:
            await asyncio.sleep(0)
        outbox.due.append(make_claim())
        delivery.nudge()
        await outbox.wait_for(1)
    assert len(sender.sent) == 1


async def test_what_is_being_sent_at_the_end_comes_to_its_end(deliver: Deliver, sender: FakeSender) -> None:
    answer = sender.answers["https://whep_1.example/"] = asyncio.Event()
    outbox = FakeOutbox(make_claim())
    async with deliver(outbox).running():
        while not sender.sent:
            await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.05, answer.set)
    assert [attempt.status for _, attempt, _ in outbox.recorded] == [200]


async def test_what_hangs_at_the_end_is_left_to_others(
    deliver: Deliver, sender: FakeSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_delivery, "_DRAIN_S", 0.01)
    sender.answers["https://whep_1.example/"] = asyncio.Event()
    outbox = FakeOutbox(make_claim())
    async with deliver(outbox).running():
        while not sender.sent:
            await asyncio.sleep(0)
    assert outbox.recorded == []
    assert sender.running.total() == 0


async def test_old_deliveries_are_forgotten_after_30_days(deliver: Deliver, clock: Clock) -> None:
    outbox = FakeOutbox()
    await deliver(outbox).forget_old()
    assert outbox.forgotten == [clock.time - 30 * 86400]


async def test_what_was_sent_is_counted_by_how_it_went(sender: FakeSender) -> None:
    meter = RecordingMeter()
    outbox = FakeOutbox(*(make_claim(number, endpoint=f"whep_{number}") for number in range(4)))
    sender.answers["https://whep_1.example/"] = Undeliverable("no such host")
    sender.answers["https://whep_2.example/"] = Receipt(500, b"", None)
    await once(WebhookDelivery(outbox, sender, SECRETS, CONFIG, meter=meter), outbox, 4)
    counts = {outcome: meter.total(webhook_delivery.ATTEMPTS, outcome=outcome) for outcome in ("succeeded", "failed")}
    assert counts == {"succeeded": 2, "failed": 2}
