"""What a process does for the ledger beside its requests: says that it lives, records progress, settles for the dead.

Knows no HTTP and no SQL.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from serve_app.ledger.billing import Price
from serve_app.ledger.entries import Counts, Line, Outcome, Settlement
from serve_app.use_cases.admission import Admission, AdmissionStore
from serve_app.use_cases.chores import Chore, repeating

HEARTBEAT_S = 5.0
ALIVE_FOR_S = 15.0
"""How long after its last heartbeat a process counts as alive."""
SWEEP_S = 5.0
STEADY_GAP_S = 2 * HEARTBEAT_S
"""How far apart the heartbeats of a process may be that settles for others."""
PROGRESS_S = 0.25
"""How often progress is recorded, and how long a request must run for it to be."""

_MAX_LINES = 500

logger = logging.getLogger(__name__)


class Owners(Protocol):
    """The processes that hold reservations or run idempotent requests, by a name that each has for its life."""

    async def beat(self, owner: str, alive_until: float) -> None:
        """The process is alive until then at least."""

    async def leave(self, owner: str) -> None:
        """The process has ended in order."""

    async def lost_lines(self, now: float, *, besides: str, limit: int) -> Sequence[tuple[Line, Counts]]:
        """Open lines whose owner is not alive, and what was recorded as delivered of them; not those of `besides`."""

    async def forget_dead(self, now: float) -> None:
        """Lets idempotent requests of dead owners be run again, and forgets owners that hold nothing any more."""


class LedgerUpkeep:
    """A request whose process died is settled by any other process or, where there is none, by the next that starts.

    Only by one whose own heartbeats have come without a gap for ALIVE_FOR_S: after an outage of the database, everyone
    has had the time to say that it lives before anyone is taken for dead. So it is settled at most ALIVE_FOR_S +
    SWEEP_S after the death where another process is that steady, and ALIVE_FOR_S + SWEEP_S after the next has started
    or the database has returned.
    """

    def __init__(
        self,
        admission: Admission,
        store: AdmissionStore,
        owners: Owners,
        prices: Mapping[str, Price],
        *,
        owner: str,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._admission = admission
        self._store = store
        self._owners = owners
        self._prices = prices
        self._owner = owner
        self._now = now
        self._steady_since = self._last_beat = -math.inf

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """When the context ends, what can be settled is settled, and what cannot is left to others at once."""
        await self.beat()
        try:
            async with repeating(
                Chore("the heartbeat", self.beat, HEARTBEAT_S),
                Chore("settling for processes that died", self.sweep, SWEEP_S),
                Chore("recording progress", self.record, PROGRESS_S),
            ):
                yield
        finally:
            await self._admission.drain()
            await self._owners.leave(self._owner)

    async def beat(self) -> None:
        at = self._now()
        await self._owners.beat(self._owner, at + ALIVE_FOR_S)
        if not self._follows(at):
            self._steady_since = at
        self._last_beat = at

    async def record(self) -> None:
        await self._admission.record_progress(older_than_s=PROGRESS_S)

    async def sweep(self) -> None:
        """Settles what dead processes left open, for what they had recorded as delivered, where this process is steady.

        Tokens that were held in windows stay counted until these end: the limits of a key may have changed since.
        """
        while self._is_steady():
            lost = await self._owners.lost_lines(self._now(), besides=self._owner, limit=_MAX_LINES)
            if not lost:
                await self._owners.forget_dead(self._now())
                return
            logger.warning("settling %d requests of processes that died", len(lost))
            await asyncio.gather(*(self._store.settle(self._settlement(line, counts)) for line, counts in lost))

    def _is_steady(self) -> bool:
        now = self._now()
        return self._follows(now) and now - self._steady_since >= ALIVE_FOR_S

    def _follows(self, at: float) -> bool:
        """Whether the last heartbeat was just before; a clock that was set is a gap too."""
        return 0 <= at - self._last_beat <= STEADY_GAP_S

    def _settlement(self, line: Line, counts: Counts) -> Settlement:
        cost = self._prices[line.dialect].cost(counts, Outcome.LOST)
        return Settlement(line, counts, cost, Outcome.LOST)
