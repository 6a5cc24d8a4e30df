"""What was used and what it cost: sums by day, and the ledger line by line. Knows no HTTP and no SQL."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from serve_app.use_cases.callers import Dialect


class UsageGroup(StrEnum):
    """What sums are kept apart by."""

    DAY = "day"
    ACCOUNT = "account"
    KEY = "key"
    DIALECT = "dialect"
    MODEL = "model"


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Which settled requests are summed, and by what. None: all.

    first_day, last_day: such as `2026-01-31`, in UTC, both included; a request counts on the day of its settlement.
    """

    account: str | None = None
    key_id: str | None = None
    dialect: Dialect | None = None
    model: str | None = None
    first_day: str | None = None
    last_day: str | None = None
    group_by: tuple[UsageGroup, ...] = tuple(UsageGroup)


@dataclass(frozen=True, slots=True)
class UsageSum:
    """The sums of one group. by: the group's values, in the order of `UsageQuery.group_by`. cost: microcredits."""

    by: tuple[tuple[UsageGroup, str], ...]
    requests: int
    prompt_tokens: int
    completion_tokens: int
    characters: int
    cost: int


@dataclass(frozen=True, slots=True)
class LedgerQuery:
    """Which lines, by the time at which their requests came: `since` included, `until` not. None: all."""

    account: str | None = None
    key_id: str | None = None
    dialect: Dialect | None = None
    model: str | None = None
    since: float | None = None
    until: float | None = None


@dataclass(frozen=True, slots=True)
class LedgerLine:
    """One request. settled_at: None while it runs. held: the most that it may cost; amounts are microcredits.

    prompt_tokens, completion_tokens, characters: what was delivered so far, or in all.
    """

    id: str
    account: str
    key_id: str
    dialect: Dialect
    model: str
    created_at: float
    settled_at: float | None
    held: int
    prompt_tokens: int
    completion_tokens: int
    characters: int
    cost: int
    outcome: str | None


class UsageReports(Protocol):
    """Reading what was settled; it is written as requests are settled."""

    async def sums(self, query: UsageQuery, *, after: UsageSum | None = None, limit: int = 1000) -> Sequence[UsageSum]:
        """Groups in the order of their values, those after the given one of the same query."""

    async def ledger(
        self, query: LedgerQuery, *, after: LedgerLine | None = None, limit: int = 1000
    ) -> Sequence[LedgerLine]:
        """Lines, oldest first, those after the given one."""


async def all_sums(reports: UsageReports, query: UsageQuery, *, page_size: int = 1000) -> AsyncIterator[UsageSum]:
    """Every group, page by page."""
    last = None
    while page := await reports.sums(query, after=last, limit=page_size):
        for found in page:
            yield found
        last = page[-1]


async def all_lines(reports: UsageReports, query: LedgerQuery, *, page_size: int = 1000) -> AsyncIterator[LedgerLine]:
    """Every line, page by page; lines that come while this runs may or may not be among them."""
    last = None
    while page := await reports.ledger(query, after=last, limit=page_size):
        for line in page:
            yield line
        last = page[-1]
