"""The rules of the ledger over rows in memory: admit, record, settle. Pure; whoever holds the rows loads and stores.

A store loads the rows that a group of operations touches, locked, applies the operations one after the other, and
stores what changed, all in one transaction.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from serve_app.ledger.entries import (
    Answer,
    Counts,
    Line,
    Opening,
    Operation,
    Progress,
    Refusal,
    Settlement,
    Verdict,
    Visit,
)
from serve_app.limits.windows import Consumption, Window, WindowState, consume, give_back

WindowKey = tuple[str, str, str]
"""Key id, dialect, name of the window."""

UsageKey = tuple[str, str, str, str, str]
"""Day (UTC), account, key id, dialect, model."""


@dataclass(slots=True)
class Purse:
    """What an account or a key may spend: `limit` less what is `spent` and `reserved`; without a limit, anything.
    Microcredits."""

    limit: int | None = None
    spent: int = 0
    reserved: int = 0

    def can_hold(self, amount: int) -> bool:
        return amount == 0 or self.limit is None or self.limit - self.spent - self.reserved >= amount

    def hold(self, amount: int) -> None:
        self.reserved += amount

    def settle(self, held: int, cost: int) -> None:
        self.reserved -= held
        self.spent += cost


@dataclass(slots=True)
class Usage:
    """Sums of settled lines."""

    requests: int = 0
    counts: Counts = field(default_factory=Counts)
    cost: int = 0


@dataclass(slots=True)
class Book:
    """The rows. `apply` changes them, and gathers what it did in the fields from `opened` on.

    lines: the open lines that may be recorded or settled, by id. num_open: open lines of a key, by key id and dialect;
    needed where an opening bounds them.
    """

    keys: dict[str, Purse] = field(default_factory=dict)
    accounts: dict[str, Purse] = field(default_factory=dict)
    windows: dict[WindowKey, WindowState] = field(default_factory=dict)
    lines: set[str] = field(default_factory=set)
    num_open: dict[tuple[str, str], int] = field(default_factory=dict)

    opened: list[Line] = field(default_factory=list)
    progress: dict[str, Counts] = field(default_factory=dict)
    settled: list[Settlement] = field(default_factory=list)
    changed_windows: set[WindowKey] = field(default_factory=set)
    usage: dict[UsageKey, Usage] = field(default_factory=dict)

    def apply(self, operations: Iterable[Operation], now: float) -> list[Answer]:
        """The answer to each of them."""
        return [self._apply(operation, now) for operation in operations]

    def _apply(self, operation: Operation, now: float) -> Answer:
        match operation:
            case Visit(key_id, _, dialect, windows):
                return self._verdict(self._consume(key_id, dialect, windows, 1, 0, now), now)
            case Opening():
                return self._open(operation, now)
            case Progress(line_id, counts):
                if line_id in self.lines:
                    self.progress[line_id] = counts
            case Settlement():
                return self._settle(operation, now)
        return None

    def _open(self, opening: Opening, now: float) -> Verdict:
        line, windows = opening.line, opening.windows
        place = (line.key_id, line.dialect)
        if opening.max_concurrent is not None and self.num_open.get(place, 0) >= opening.max_concurrent:
            standing = consume(windows, self._states(*place, windows), requests=0, tokens=0, now=now).standings
            return Verdict(standing, Refusal.CONCURRENCY, at=now)
        key, account = self.keys[line.key_id], self.accounts[line.account]
        has_credit = key.can_hold(line.held) and account.can_hold(line.held)
        tokens = line.held_tokens if has_credit else 0
        verdict = self._verdict(self._consume(*place, windows, 1, tokens, now), now)
        if verdict.refusal is not None:
            return verdict
        if not has_credit:
            return replace(verdict, refusal=Refusal.CREDIT)
        key.hold(line.held)
        account.hold(line.held)
        self.lines.add(line.id)
        self.num_open[place] = self.num_open.get(place, 0) + 1
        self.opened.append(replace(line, created_at=now))
        return verdict

    def _settle(self, settlement: Settlement, now: float) -> bool:
        line = settlement.line
        if line.id not in self.lines:
            return False
        self.lines.discard(line.id)
        self.progress.pop(line.id, None)
        place = (line.key_id, line.dialect)
        self.num_open[place] = self.num_open.get(place, 0) - 1
        self.keys[line.key_id].settle(line.held, settlement.cost)
        self.accounts[line.account].settle(line.held, settlement.cost)
        for window in settlement.token_windows:
            key = (*place, window.name)
            if (state := self.windows.get(key)) is not None:
                rest = give_back(state, line.held_tokens - settlement.counts.tokens, counted_at=line.created_at)
                self._set_window(key, rest)
        self.settled.append(settlement)
        day = datetime.fromtimestamp(now, UTC).date().isoformat()
        usage = self.usage.setdefault((day, line.account, line.key_id, line.dialect, line.model), Usage())
        usage.requests += 1
        usage.counts += settlement.counts
        usage.cost += settlement.cost
        return True

    def _consume(
        self, key_id: str, dialect: str, windows: Sequence[Window], requests: int, tokens: int, now: float
    ) -> Consumption:
        states = self._states(key_id, dialect, windows)
        consumption = consume(windows, states, requests=requests, tokens=tokens, now=now)
        for name, state in consumption.states.items():
            self._set_window((key_id, dialect, name), state)
        return consumption

    def _states(self, key_id: str, dialect: str, windows: Sequence[Window]) -> dict[str, WindowState]:
        keys = {window.name: (key_id, dialect, window.name) for window in windows}
        return {name: self.windows[key] for name, key in keys.items() if key in self.windows}

    def _set_window(self, key: WindowKey, state: WindowState) -> None:
        if self.windows.get(key) != state:
            self.windows[key] = state
            self.changed_windows.add(key)

    @staticmethod
    def _verdict(consumption: Consumption, now: float) -> Verdict:
        refusal = Refusal.WINDOW if consumption.full else None
        return Verdict(consumption.standings, refusal, consumption.full, now)
