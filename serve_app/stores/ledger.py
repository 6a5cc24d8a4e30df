"""The rows of the ledger in SQL: loaded and locked for a group of operations, and what these changed stored.

Locks are taken in one order by everybody (keys, accounts, lines, each by id), so that no two groups wait for each
other. The row of a key guards its windows and its usage too.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

from sqlalchemy import BindParameter, Connection, bindparam, func, select, update

from serve_app.ledger.book import Book, Purse, Usage
from serve_app.ledger.entries import Answer, Opening, Operation, Progress, Settlement, Visit
from serve_app.limits.windows import Window, WindowState
from serve_app.stores.tables import accounts, keys, ledger, rate_windows, usage_by_day
from serve_app.stores.upsert import insert_in

_IDS: BindParameter[Any] = bindparam("ids", expanding=True)

# Made once: to build a statement takes longer than to run it.
_KEYS = select(keys.c.id, keys.c.budget, keys.c.spent, keys.c.reserved).where(keys.c.id.in_(_IDS))
_LOCKED_KEYS = _KEYS.order_by(keys.c.id).with_for_update()
_ACCOUNTS = select(accounts.c.id, accounts.c.credit, accounts.c.reserved).where(accounts.c.id.in_(_IDS))
_LOCKED_ACCOUNTS = _ACCOUNTS.order_by(accounts.c.id).with_for_update()
_WINDOWS = select(rate_windows).where(rate_windows.c.key_id.in_(_IDS))
_NUM_OPEN = (
    select(ledger.c.key_id, ledger.c.dialect, func.count())
    .where(ledger.c.key_id.in_(_IDS), ledger.c.settled_at.is_(None))
    .group_by(ledger.c.key_id, ledger.c.dialect)
)
_LOCKED_LINES = (
    select(ledger.c.id)
    .where(ledger.c.id.in_(_IDS), ledger.c.settled_at.is_(None))
    .order_by(ledger.c.id)
    .with_for_update()
)

_OPEN = ledger.insert()
_RECORD = (
    update(ledger)
    .where(ledger.c.id == bindparam("line"))
    .values({name: bindparam(name) for name in ("prompt_tokens", "completion_tokens", "characters")})
)
_SETTLE = _RECORD.values(
    owner=None, settled_at=bindparam("settled_at"), cost=bindparam("cost"), outcome=bindparam("outcome")
)
_CHARGE_KEY = (
    update(keys)
    .where(keys.c.id == bindparam("row"))
    .values(spent=keys.c.spent + bindparam("cost"), reserved=keys.c.reserved + bindparam("held"))
)
_CHARGE_ACCOUNT = (
    update(accounts)
    .where(accounts.c.id == bindparam("row"))
    .values(credit=accounts.c.credit - bindparam("cost"), reserved=accounts.c.reserved + bindparam("held"))
)


def apply(connection: Connection, operations: Sequence[Operation], now: Callable[[], float]) -> Sequence[Answer]:
    """Carries out the operations, one after the other, in the transaction of the connection; see `Book.apply`.

    `now` is asked once the rows are locked.
    """
    book = _load(connection, operations)
    before = _balances(book)
    at = now()
    answers = book.apply(operations, at)
    _store(connection, book, before, at)
    return answers


def read_windows(connection: Connection, key_id: str, dialect: str) -> Mapping[str, WindowState]:
    """The stored windows of a key, by name."""
    rows = connection.execute(_WINDOWS, {"ids": [key_id]})
    return {row.name: WindowState(row.started_at, row.used) for row in rows if row.dialect == dialect}


def _load(connection: Connection, operations: Sequence[Operation]) -> Book:
    places = [_place(operation) for operation in operations if not isinstance(operation, Progress)]
    book = Book()
    if places:
        for key in connection.execute(_LOCKED_KEYS, {"ids": sorted({key_id for key_id, _ in places})}):
            book.keys[key.id] = Purse(key.budget, key.spent, key.reserved)
        for account in connection.execute(_LOCKED_ACCOUNTS, {"ids": sorted({account for _, account in places})}):
            book.accounts[account.id] = Purse(account.credit, 0, account.reserved)
    with_windows = sorted({operation.key_id for operation in operations if isinstance(operation, Visit)})
    with_windows += sorted(
        {
            operation.line.key_id
            for operation in operations
            if isinstance(operation, Opening | Settlement) and _windows(operation)
        }
    )
    if with_windows:
        for window in connection.execute(_WINDOWS, {"ids": with_windows}):
            book.windows[window.key_id, window.dialect, window.name] = WindowState(window.started_at, window.used)
    bounded = sorted(
        {
            operation.line.key_id
            for operation in operations
            if isinstance(operation, Opening) and operation.max_concurrent is not None
        }
    )
    if bounded:
        for key_id, dialect, number in connection.execute(_NUM_OPEN, {"ids": bounded}):
            book.num_open[key_id, dialect] = number
    line_ids = sorted({_line_id(operation) for operation in operations if isinstance(operation, Progress | Settlement)})
    if line_ids:
        book.lines.update(connection.execute(_LOCKED_LINES, {"ids": line_ids}).scalars())
    return book


def _place(operation: Visit | Opening | Settlement) -> tuple[str, str]:
    """Key and account."""
    row = operation if isinstance(operation, Visit) else operation.line
    return row.key_id, row.account


def _windows(operation: Opening | Settlement) -> tuple[Window, ...]:
    return operation.windows if isinstance(operation, Opening) else operation.token_windows


def _line_id(operation: Progress | Settlement) -> str:
    return operation.id if isinstance(operation, Progress) else operation.line.id


Balances = tuple[dict[str, tuple[int, int]], dict[str, tuple[int, int]]]
"""What keys and accounts have spent and reserved."""


def _balances(book: Book) -> Balances:
    def of(purses: Mapping[str, Purse]) -> dict[str, tuple[int, int]]:
        return {name: (purse.spent, purse.reserved) for name, purse in purses.items()}

    return of(book.keys), of(book.accounts)


def _store(connection: Connection, book: Book, before: Balances, at: float) -> None:
    def execute(statement: Any, rows: Iterable[dict[str, Any]]) -> None:
        if parameters := list(rows):
            connection.execute(statement, parameters)

    execute(_OPEN, (asdict(line) for line in book.opened))
    execute(_CHARGE_KEY, _changes(book.keys, before[0]))
    execute(_CHARGE_ACCOUNT, _changes(book.accounts, before[1]))
    execute(
        _upsert_windows(connection.dialect.name),
        (
            {"key_id": key_id, "dialect": dialect, "name": name, **asdict(book.windows[key_id, dialect, name])}
            for key_id, dialect, name in sorted(book.changed_windows)
        ),
    )
    execute(_RECORD, ({"line": line, **asdict(counts)} for line, counts in sorted(book.progress.items())))
    execute(
        _SETTLE,
        (
            {
                "line": settlement.line.id,
                "settled_at": at,
                "cost": settlement.cost,
                "outcome": settlement.outcome.value,
                **asdict(settlement.counts),
            }
            for settlement in sorted(book.settled, key=lambda settlement: settlement.line.id)
        ),
    )
    execute(
        _upsert_usage(connection.dialect.name), (_usage_row(key, usage) for key, usage in sorted(book.usage.items()))
    )


def _changes(purses: Mapping[str, Purse], before: Mapping[str, tuple[int, int]]) -> list[dict[str, Any]]:
    return [
        {"row": name, "cost": purse.spent - before[name][0], "held": purse.reserved - before[name][1]}
        for name, purse in sorted(purses.items())
        if (purse.spent, purse.reserved) != before[name]
    ]


@cache
def _upsert_windows(dialect: str) -> Any:
    statement = insert_in(dialect, rate_windows)
    new = statement.excluded
    return statement.on_conflict_do_update(
        index_elements=list(rate_windows.primary_key), set_={"started_at": new.started_at, "used": new.used}
    )


@cache
def _upsert_usage(dialect: str) -> Any:
    statement = insert_in(dialect, usage_by_day)
    sums = ("requests", "prompt_tokens", "completion_tokens", "characters", "cost")
    return statement.on_conflict_do_update(
        index_elements=list(usage_by_day.primary_key),
        set_={name: usage_by_day.c[name] + statement.excluded[name] for name in sums},
    )


def _usage_row(key: tuple[str, str, str, str, str], usage: Usage) -> dict[str, Any]:
    day, account, key_id, dialect, model = key
    place = {"day": day, "account": account, "key_id": key_id, "dialect": dialect, "model": model}
    return {**place, "requests": usage.requests, "cost": usage.cost, **asdict(usage.counts)}
