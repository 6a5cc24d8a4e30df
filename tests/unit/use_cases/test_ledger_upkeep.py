"""What a process does for the ledger beside its requests, in a time that passes at once."""

import asyncio
import selectors
from collections.abc import Sequence
from typing import Any

from serve_app.ledger.entries import Counts, Line, Outcome
from serve_app.use_cases.admission import Admission
from serve_app.use_cases.callers import Caller, Dialect, Principal
from serve_app.use_cases.ledger_upkeep import PROGRESS_S, LedgerUpkeep
from tests.fakes import FakeAdmissionStore, make_admission


class _Hurry(selectors.SelectSelector):
    """Where it is to wait for so long, so much time has passed at once."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += timeout or 0.0
        return super().select(0)


class _HurriedLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._hurry = _Hurry()
        super().__init__(self._hurry)

    def time(self) -> float:
        return self._hurry.now


class LoneOwner:
    """Nobody else has ever been there."""

    async def beat(self, *_: Any) -> None:
        pass

    async def leave(self, *_: Any) -> None:
        pass

    async def lost_lines(self, *_: Any, **_options: Any) -> Sequence[tuple[Line, Counts]]:
        return ()

    async def forget_dead(self, *_: Any) -> None:
        pass


def test_what_was_delivered_is_recorded_within_its_time() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        store, rules = FakeAdmissionStore(), make_admission()._rules
        admission = Admission(store, rules, owner="me", monotonic=loop.time)
        upkeep = LedgerUpkeep(admission, store, LoneOwner(), rules.prices, owner="me", now=loop.time)
        delivered: list[tuple[float, Counts]] = []
        async with upkeep.running():
            caller = Caller("r1", Dialect.TOTALGPT, Principal("acme", "key"))
            reservation = await admission.admit(caller, "base", Counts(10, 1000))
            while loop.time() < 10:
                reservation.delivered(Counts(0, 1))
                delivered.append((loop.time(), reservation.counts))
                await asyncio.sleep(PROGRESS_S / 7)
                due = [counts for at, counts in delivered if at <= loop.time() - 2 * PROGRESS_S]
                if due:
                    assert store.recorded[-1].counts.completion_tokens >= due[-1].completion_tokens
            await reservation.settle(Outcome.COMPLETED)

    with asyncio.Runner(loop_factory=_HurriedLoop) as runner:
        runner.run(run())
