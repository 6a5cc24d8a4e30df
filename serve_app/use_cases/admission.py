"""Lets requests in and settles them: windows, reservations, what was delivered. Knows no HTTP and no SQL."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Protocol, Self

from deployments.errors import OutOfCredits, Overloaded, RateLimited
from deployments.meter import Counter, Gauge, Meter, NoMeter
from serve_app.config import DialectLimits, LimitsConfig
from serve_app.ledger.billing import Price, hold
from serve_app.ledger.entries import (
    Counts,
    Line,
    Opening,
    Outcome,
    Progress,
    Refusal,
    Settlement,
    Verdict,
    Visit,
)
from serve_app.limits.windows import Window, WindowStanding
from serve_app.use_cases.callers import Caller, Dialect, KeyLimits, Principal

_CONCURRENCY_RETRY_S = 1.0
_SETTLE_RETRY_S = 1.0
_DRAIN_TIMEOUT_S = 10.0
_NO_LIMITS = KeyLimits()

REFUSALS = Counter(
    "tritext_refusals_total",
    "Requests that were not let in, by what was used up: window, concurrency, credit",
    ("dialect", "reason"),
)
OPEN = Gauge("tritext_open_reservations", "Requests of this process that are admitted and not settled")
OLDEST = Gauge("tritext_oldest_reservation_seconds", "The age of the oldest of them, 0 without any")
UNSETTLED = Gauge("tritext_unsettled_requests", "Settlements of this process that the database did not take yet")
METRICS = (REFUSALS, OPEN, OLDEST, UNSETTLED)

logger = logging.getLogger(__name__)


class AdmissionStore(Protocol):
    """The ledger and the windows of all processes. Every method returns once its effect outlives a crash.

    Each operation is one step for all processes: it happens whole or not at all.
    """

    async def open(self, opening: Opening) -> Verdict:
        """Counts the request and reserves; a refused one leaves no line."""

    async def visit(self, visit: Visit) -> Verdict:
        """Counts a request that costs nothing."""

    async def settle(self, settlement: Settlement) -> bool:
        """Closes the line, and says whether it did; does nothing where it is closed or was never opened."""

    async def record(self, progress: Sequence[Progress]) -> None:
        """Keeps what was delivered of open lines so far, for the case that this process dies."""

    async def standings(self, key_id: str, dialect: str, windows: Sequence[Window]) -> tuple[WindowStanding, ...]:
        """How the windows stand now; changes nothing."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Prices by dialect, and the limits of keys that have none of their own."""

    prices: Mapping[str, Price]
    limits: Mapping[Dialect, KeyLimits]

    def limits_of(self, principal: Principal, dialect: Dialect) -> KeyLimits:
        return dict(principal.limits).get(dialect) or self.limits.get(dialect, _NO_LIMITS)


def make_limits(config: LimitsConfig) -> Mapping[Dialect, KeyLimits]:
    return {dialect: _key_limits(getattr(config, dialect.value)) for dialect in Dialect}


def _key_limits(config: DialectLimits) -> KeyLimits:
    windows = tuple(Window(window.name, window.quota, window.period_s, window.counts) for window in config.windows)
    return KeyLimits(windows, config.max_concurrent)


class Reservation:
    """One admitted request, until it is settled. As a context manager it is settled when the context is left:
    COMPLETED, or by the exception that left it CANCELLED or FAILED."""

    def __init__(self, admission: "Admission", line: Line, price: Price, token_windows: tuple[Window, ...]) -> None:
        self.line = line
        self.counts = Counts()
        self._admission = admission
        self._price = price
        self._token_windows = token_windows
        self._settled = False

    def delivered(self, counts: Counts) -> None:
        """Adds what the client was sent."""
        self.counts += counts

    async def settle(self, outcome: Outcome, *, about_to_send: Counts | None = None) -> None:
        """Bills what was delivered, and what will be as soon as this returns; once: later calls do nothing.

        It goes on when the caller is cancelled. Raises what the store raises; then only what was delivered before is
        billed, as soon as the store can be reached. Raises Overloaded where a completed answer cannot be billed any
        more, because another process took this one for dead.
        """
        if self._settled:
            return
        self._settled = True
        fallback = self._settlement(self.counts, Outcome.FAILED)
        if about_to_send is not None:
            self.counts += about_to_send
        await self._admission.settle(self._settlement(self.counts, outcome), fallback)

    def _settlement(self, counts: Counts, outcome: Outcome) -> Settlement:
        return Settlement(self.line, counts, self._price.cost(counts, outcome), outcome, self._token_windows)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self.settle(Outcome.COMPLETED)
        elif isinstance(error, Exception):
            await self.settle(Outcome.FAILED)
        else:
            await self.settle(Outcome.CANCELLED)


class Admission:
    """Admission and settlement for one process, whose name in the ledger is `owner`."""

    def __init__(
        self,
        store: AdmissionStore,
        rules: Rules,
        *,
        owner: str,
        meter: Meter | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._rules = rules
        self._meter = meter or NoMeter()
        self._owner = owner
        self._monotonic = monotonic
        self._open: dict[str, tuple[float, Reservation]] = {}
        self._recorded: dict[str, Counts] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._num_unsettled = 0

    async def admit(self, caller: Caller, model: str, most: Counts) -> Reservation:
        """Counts the request and reserves what an answer of at most these counts can cost; sets `caller.limits`.

        Raises RateLimited (nothing is counted), OutOfCredits (the request is counted), and what the store raises.
        """
        principal, dialect = caller.principal, caller.dialect
        limits = self._rules.limits_of(principal, dialect)
        price = self._rules.prices[dialect]
        line = Line(
            id=caller.request_id,
            account=principal.account,
            key_id=principal.key_id,
            dialect=dialect.value,
            model=model,
            owner=self._owner,
            held=hold(price, most),
            held_tokens=most.tokens,
        )
        verdict = await self._opened(Opening(line, limits.windows, limits.max_concurrent))
        caller.limits = verdict.standings
        self._raise_refusal(verdict, dialect, limits, most)
        line = replace(line, created_at=verdict.at)
        reservation = Reservation(self, line, price, _token_windows(limits.windows))
        self._open[line.id] = (self._monotonic(), reservation)
        return reservation

    async def count(self, caller: Caller) -> None:
        """Counts a request that bills nothing, or was refused before it was admitted; sets `caller.limits`.

        A request that was counted already is not counted again. Raises RateLimited and what the store raises.
        """
        if caller.limits is not None:
            return
        principal, dialect = caller.principal, caller.dialect
        limits = self._rules.limits_of(principal, dialect)
        if not limits.windows:
            caller.limits = ()
            return
        verdict = await self._store.visit(Visit(principal.key_id, principal.account, dialect.value, limits.windows))
        caller.limits = verdict.standings
        self._raise_refusal(verdict, dialect, limits, Counts())

    async def standings(self, principal: Principal, dialect: Dialect) -> tuple[WindowStanding, ...]:
        """How the key's windows stand; counts nothing."""
        windows = self._rules.limits_of(principal, dialect).windows
        return await self._store.standings(principal.key_id, dialect.value, windows) if windows else ()

    async def settle(self, settlement: Settlement, fallback: Settlement) -> None:
        """See `Reservation.settle`."""
        task = asyncio.ensure_future(self._settle(settlement, fallback))
        self._keep(task)
        await asyncio.shield(task)

    async def record_progress(self, *, older_than_s: float) -> None:
        """Keeps what was delivered of the requests that have run for so long, where it has grown."""
        admitted_before = self._monotonic() - older_than_s
        grown = [
            Progress(line_id, reservation.counts)
            for line_id, (admitted_at, reservation) in self._open.items()
            if admitted_at <= admitted_before and reservation.counts != self._recorded.get(line_id, Counts())
        ]
        if grown:
            await self._store.record(grown)
            self._recorded |= {progress.id: progress.counts for progress in grown if progress.id in self._open}

    async def measure(self) -> None:
        """How the reservations of this process stand; to be called every few seconds."""
        now = self._monotonic()
        ages = [now - admitted_at for admitted_at, _ in self._open.values()]
        self._meter.set(OPEN, len(ages))
        self._meter.set(OLDEST, max(ages, default=0.0))
        self._meter.set(UNSETTLED, self._num_unsettled)

    async def drain(self) -> None:
        """Returns when nothing is left to be settled in the background, or the store cannot be reached for long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_TIMEOUT_S):
                while self._background:
                    await asyncio.wait(self._background)

    def _raise_refusal(self, verdict: Verdict, dialect: Dialect, limits: KeyLimits, most: Counts) -> None:
        if verdict.refusal is not None:
            self._meter.add(REFUSALS, 1, dialect=dialect.value, reason=verdict.refusal.value)
        _raise_refusal(verdict, limits, most)

    async def _opened(self, opening: Opening) -> Verdict:
        """What the store says; whoever stops waiting for it leaves nothing open."""
        task = asyncio.ensure_future(self._store.open(opening))
        try:
            return await asyncio.shield(task)
        except (asyncio.CancelledError, Exception):
            # Also where the store failed: it may have lost its answer and not the line.
            self._keep(asyncio.ensure_future(self._undo(task, opening)))
            raise

    async def _undo(self, task: "asyncio.Future[Verdict]", opening: Opening) -> None:
        """Without a verdict nobody knows when tokens were counted, and they stay so until their windows end."""
        await asyncio.wait({task})
        line = opening.line
        if not task.cancelled() and task.exception() is None:
            line = replace(line, created_at=task.result().at)
        nothing = Settlement(line, Counts(), 0, Outcome.CANCELLED, _token_windows(opening.windows))
        await self._settle(nothing, nothing)

    async def _settle(self, settlement: Settlement, fallback: Settlement) -> None:
        line_id = settlement.line.id
        try:
            is_closed_by_us = await self._store.settle(settlement)
        except Exception as error:
            logger.error("request %s is not settled yet: %s", line_id, error)
            self._keep(asyncio.ensure_future(self._settle_later(fallback)))
            raise
        finally:
            self._open.pop(line_id, None)
            self._recorded.pop(line_id, None)
        if settlement.outcome is Outcome.COMPLETED and not is_closed_by_us:
            logger.error("request %s is complete, but another process has settled it as lost", line_id)
            raise Overloaded("the request was taken for lost while it ran; send it again")

    async def _settle_later(self, settlement: Settlement) -> None:
        self._num_unsettled += 1
        try:
            while True:
                await asyncio.sleep(_SETTLE_RETRY_S)
                try:
                    await self._store.settle(settlement)
                except Exception as error:
                    logger.error("request %s is still not settled: %s", settlement.line.id, error)
                else:
                    return
        finally:
            self._num_unsettled -= 1

    def _keep(self, task: "asyncio.Task[None]") -> None:
        """Tasks that nobody awaits would be forgotten by the event loop."""
        self._background.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: "asyncio.Task[None]") -> None:
        self._background.discard(task)
        if not task.cancelled():
            task.exception()  # it was logged


def _token_windows(windows: Sequence[Window]) -> tuple[Window, ...]:
    return tuple(window for window in windows if window.counts == "tokens")


def _raise_refusal(verdict: Verdict, limits: KeyLimits, most: Counts) -> None:
    match verdict.refusal:
        case Refusal.CREDIT:
            raise OutOfCredits()
        case Refusal.CONCURRENCY:
            raise RateLimited(
                f"the key has {limits.max_concurrent} requests running, which is the most that it may have at once",
                _CONCURRENCY_RETRY_S,
            )
        case Refusal.WINDOW:
            last = max(verdict.full, key=lambda standing: standing.resets_in_s)
            window = last.window
            message = f"the key's limit of {window.quota} {window.counts} in {window.period_s:g} seconds is reached"
            if window.counts == "tokens" and most.tokens > window.quota:
                message = f"the request may take {most.tokens} tokens, above the key's limit of {window.quota}"
            raise RateLimited(f"{message} (window {window.name!r})", last.resets_in_s)
