"""Delivers what is in the outbox, at least once, beside any number of processes that do. Knows no HTTP and no SQL."""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from deployments.errors import StorageError
from deployments.meter import Counter, Meter, NoMeter
from serve_app.config import WebhooksConfig
from serve_app.use_cases.chores import Chore, repeating
from serve_app.use_cases.webhook_secrets import SealedSecrets, UnreadableSecret
from serve_app.webhooks.attempt import Attempt, kept_text, pause_after, retry_after_s
from serve_app.webhooks.event import EventType
from serve_app.webhooks.sharing import MAX_SENDING, Parcel
from serve_app.webhooks.signing import signed_headers

LEASE_MARGIN_S = 30.0
"""How much longer than an attempt a delivery belongs to the process that claimed it."""
KEPT_FOR_S = 30 * 86400.0
"""How long deliveries that have ended, and events, can still be looked at and sent again."""

_POLL_S = 1.0
_RECORD_RETRY_S = 1.0
_FORGET_S = 3600.0
_DRAIN_S = 10.0

ATTEMPTS = Counter("tritext_webhook_attempts_total", "Webhooks that were sent: succeeded, failed", ("outcome",))
METRICS = (ATTEMPTS,)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Claim:
    """A delivery that this process sends, until its lease ends or it is recorded.

    fence: grows with each claim; what an earlier one records is refused. attempts: that have ended. secret,
    old_secret: sealed; the old one signs too until `old_secret_until`. payload: the bytes to send.
    """

    parcel: Parcel
    fence: int
    attempts: int
    url: str
    secret: bytes
    old_secret: bytes | None
    old_secret_until: float | None
    event: str
    type: EventType
    payload: bytes


class Outbox(Protocol):
    """The deliveries of all processes. Every method returns once its effect outlives a crash; raises StorageError."""

    async def claim(self, now: float, lease_until: float, sending: Collection[Parcel]) -> Sequence[Claim]:
        """Deliveries that are due, for which there is room beside those that are being sent here.

        Nobody else is given them until the lease ends. Those to endpoints that have gone meanwhile end.
        """

    async def record(
        self, claim: Claim, attempt: Attempt, next_at: float | None, *, disable_failing_since: float
    ) -> str | None:
        """What came of the claim, when it is due again or None, and how its endpoint does; nothing if it was lost.

        An endpoint that is gone is disabled, and so is one that has failed since before `disable_failing_since` when an
        event is not tried again; what is pending for it ends. Answers why it was disabled, if it was.
        """

    async def forget(self, before: float) -> None:
        """Deletes deliveries that ended before, events of before without deliveries, and deleted endpoints."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """A response: its status, the beginning of its body, and its header Retry-After."""

    status: int
    body: bytes
    retry_after: str | None


class Undeliverable(Exception):
    """Undeliverable(why): there was no response. `why` is told to the owner of the endpoint."""


class Sender(Protocol):
    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Receipt:
        """Raises Undeliverable."""


class WebhookDelivery:
    """The deliveries of one process. `chance` gives random numbers from 0 to 1."""

    def __init__(
        self,
        outbox: Outbox,
        sender: Sender,
        secrets: SealedSecrets,
        config: WebhooksConfig,
        *,
        lease_margin_s: float = LEASE_MARGIN_S,
        meter: Meter | None = None,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._outbox = outbox
        self._sender = sender
        self._secrets = secrets
        self._config = config
        self._lease_margin_s = lease_margin_s
        self._meter = meter or NoMeter()
        self._now = now
        self._monotonic = monotonic
        self._chance = chance
        self._sending: dict[asyncio.Task[None], Parcel] = {}
        self._wake = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """Delivers for as long as the context lasts. At its end, what is being sent has some seconds to come to an end;
        what does not is sent again by another process, when its lease has ended."""
        delivering = asyncio.create_task(self._deliver())
        try:
            async with repeating(Chore("forgetting old webhooks", self.forget_old, _FORGET_S)):
                yield
        finally:
            delivering.cancel()
            await asyncio.wait({delivering})
            await self._drain()

    def nudge(self) -> None:
        """There may be something to deliver: it need not wait for the next look."""
        self._wake.set()

    async def start_due(self) -> int:
        """Begins to send what is due, as far as there is room; says how many. Raises StorageError."""
        if len(self._sending) >= MAX_SENDING:
            return 0
        claimed_at, now = self._monotonic(), self._now()
        claims = await self._outbox.claim(now, now + self._lease_s, list(self._sending.values()))
        for claim in claims:
            task = asyncio.create_task(self._send(claim, claimed_at))
            self._sending[task] = claim.parcel
            task.add_done_callback(self._ended)
        return len(claims)

    async def forget_old(self) -> None:
        await self._outbox.forget(self._now() - KEPT_FOR_S)

    @property
    def _lease_s(self) -> float:
        return self._config.timeout_s + self._lease_margin_s

    async def _deliver(self) -> None:
        while True:
            self._wake.clear()
            num_started = 0
            try:
                num_started = await self.start_due()
            except Exception as error:
                logger.error("webhooks are not delivered for %g s: %s", _POLL_S, error)
            if num_started == 0:
                # Not `wait_for`, which may swallow a cancellation.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_S):
                        await self._wake.wait()

    async def _drain(self) -> None:
        if self._sending:
            await asyncio.wait(self._sending, timeout=_DRAIN_S)
        tasks = list(self._sending)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._sending[task]
        self._wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            # Its lease ends, and it is sent again.
            logger.error("the delivery of a webhook failed with %s", type(error).__name__)

    async def _send(self, claim: Claim, claimed_at: float) -> None:
        if self._monotonic() - claimed_at > self._lease_margin_s / 2:
            return  # this process was held up, and the lease may end before the attempt does
        attempt = await self._attempt(claim)
        self._meter.add(ATTEMPTS, 1, outcome="succeeded" if attempt.succeeded else "failed")
        pause_s = None
        if claim.type is not EventType.TEST:  # a test asks how things are now
            pause_s = pause_after(attempt, claim.attempts + 1, self._config.retry_s, chance=self._chance())
        await self._record(claim, attempt, pause_s, give_up_at=claimed_at + self._lease_s)

    async def _attempt(self, claim: Claim) -> Attempt:
        at = self._now()
        try:
            headers = signed_headers(claim.event, at, claim.payload, self._signing_secrets(claim, at))
            receipt = await self._sender.send(claim.url, headers, claim.payload)
            return Attempt(
                at,
                status=receipt.status,
                body=kept_text(receipt.body),
                retry_after_s=retry_after_s(receipt.status, receipt.retry_after, self._now()),
            )
        except UnreadableSecret:
            return Attempt(at, error="the secret to sign with cannot be read any more; rotate it")
        except Undeliverable as error:
            return Attempt(at, error=str(error))
        except Exception as error:  # counts as a failure too, or it would be sent again for ever
            logger.error("sending a webhook failed with %s", type(error).__name__)
            return Attempt(at, error="something went wrong on our side")

    def _signing_secrets(self, claim: Claim, at: float) -> Sequence[str]:
        sealed = [claim.secret]
        if claim.old_secret is not None and claim.old_secret_until is not None and at < claim.old_secret_until:
            sealed.append(claim.old_secret)
        return [self._secrets.open(claim.parcel.endpoint, secret) for secret in sealed]

    async def _record(self, claim: Claim, attempt: Attempt, pause_s: float | None, *, give_up_at: float) -> None:
        """Tries until the lease ends: what is not recorded is sent again."""
        while True:
            now = self._now()
            try:
                disabled = await self._outbox.record(
                    claim,
                    attempt,
                    None if pause_s is None else now + pause_s,
                    disable_failing_since=now - self._config.disable_after_s,
                )
            except StorageError:
                if self._monotonic() >= give_up_at:
                    raise
                await asyncio.sleep(_RECORD_RETRY_S)
            else:
                if disabled is not None:
                    logger.warning("the webhook endpoint %s is disabled: %s", claim.parcel.endpoint, disabled)
                return
