"""The ledger in SQL against the same rules in memory: whatever is done, in groups and across days, the rows agree."""

import asyncio
from dataclasses import replace
from pathlib import Path
from shutil import copy
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import delete

from serve_app.ledger.book import Book, Purse
from serve_app.ledger.entries import (
    Answer,
    Counts,
    Line,
    Opening,
    Operation,
    Outcome,
    Progress,
    Settlement,
    Verdict,
    Visit,
)
from serve_app.limits.windows import Window
from serve_app.stores.admission import SqlAdmissionStore
from serve_app.stores.database import Database
from serve_app.stores.tables import metadata
from tests.integration.stores.ledger_rows import add_key, rows

WINDOWS = (Window("minute", 4, 60.0), Window("tokens", 100, 60.0, "tokens"))
DIALECTS = ("aitextgen", "totalgpt")
CREDIT, BUDGET = 120, 70
TABLES = ("keys", "accounts", "rate_windows", "ledger", "usage_by_day")


class LedgerMachine(RuleBasedStateMachine):
    """Keys 0 and 1 of one account with bounded credit, the first with a budget of its own."""

    url: str

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.now = 1_000_000_000.0
        self.lines: dict[str, Line] = {}
        self.number = 0

    @initialize()
    def prepare(self) -> None:
        async def make() -> list[str]:
            self.database = await Database.open(self.url)
            async with self.database.write() as connection:
                for table in reversed(metadata.sorted_tables):
                    await connection.execute(delete(table))
            principals = [await add_key(self.database, budget=budget, credit=CREDIT) for budget in (BUDGET, None)]
            return [principal.key_id for principal in principals]

        self.key_ids = self.runner.run(make())
        self.store = SqlAdmissionStore(self.database, now=lambda: self.now)
        purses = dict(zip(self.key_ids, (Purse(BUDGET), Purse()), strict=True))
        self.book = Book(keys=purses, accounts={"acme": Purse(CREDIT)})

    def teardown(self) -> None:
        self.runner.run(self.database.close())
        self.runner.close()

    @rule(seconds=st.sampled_from([0.5, 20.0, 61.0, 86400.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(data=st.data(), size=st.integers(1, 4))
    def group(self, data: st.DataObject, size: int) -> None:
        operations = [self.draw(data) for _ in range(size)]
        expected = self.book.apply(operations, self.now)
        assert self.runner.run(self.submit(operations)) == expected
        for operation, verdict in zip(operations, expected, strict=True):
            if isinstance(operation, Opening) and isinstance(verdict, Verdict) and verdict.refusal is None:
                self.lines[operation.line.id] = replace(operation.line, created_at=self.now)

    async def submit(self, operations: list[Operation]) -> list[Answer]:
        return await asyncio.gather(*map(self.store._group.submit, operations))

    def draw(self, data: st.DataObject) -> Operation:
        kind = data.draw(st.sampled_from(["open", "open", "visit", "settle", "settle", "record"]))
        key_id, dialect = data.draw(st.sampled_from(self.key_ids)), data.draw(st.sampled_from(DIALECTS))
        if kind == "visit":
            return Visit(key_id, "acme", dialect, WINDOWS)
        if kind == "open" or not self.lines:
            self.number += 1
            held, tokens = data.draw(st.integers(0, 50)), data.draw(st.integers(0, 60))
            line = Line(f"{self.number:04}", "acme", key_id, dialect, "base", "owner", held, tokens)
            bound = data.draw(st.sampled_from([None, 1, 2]))
            return Opening(line, data.draw(st.sampled_from([(), WINDOWS])), bound)
        line = data.draw(st.sampled_from(list(self.lines.values())))
        tokens = data.draw(st.integers(0, line.held_tokens))
        counts = Counts(tokens // 2, tokens - tokens // 2, data.draw(st.integers(0, 99)))
        if kind == "record":
            return Progress(line.id, counts)
        cost = data.draw(st.integers(0, line.held))
        return Settlement(line, counts, cost, data.draw(st.sampled_from(Outcome)), WINDOWS[1:])

    @invariant()
    def rows_agree(self) -> None:
        if not hasattr(self, "book"):
            return
        found = {name: self.runner.run(rows(self.database, name)) for name in TABLES}
        for key in found["keys"]:
            purse = self.book.keys[key["id"]]
            assert (key["spent"], key["reserved"]) == (purse.spent, purse.reserved)
        [account] = found["accounts"]
        purse = self.book.accounts["acme"]
        assert (account["credit"], account["reserved"]) == (CREDIT - purse.spent, purse.reserved)
        windows = {
            (row["key_id"], row["dialect"], row["name"]): (row["started_at"], row["used"])
            for row in found["rate_windows"]
        }
        assert windows == {key: (state.started_at, state.used) for key, state in self.book.windows.items()}
        assert {line["id"] for line in found["ledger"] if line["settled_at"] is None} == self.book.lines
        settled = {settlement.line.id: settlement for settlement in self.book.settled}
        for line in found["ledger"]:
            self.check_line(line, settled.get(line["id"]))
        usage = {
            (row["day"], row["account"], row["key_id"], row["dialect"], row["model"]): (row["requests"], row["cost"])
            for row in found["usage_by_day"]
        }
        assert usage == {key: (sums.requests, sums.cost) for key, sums in self.book.usage.items()}

    def check_line(self, line: Any, settlement: Settlement | None) -> None:
        counts = Counts(line["prompt_tokens"], line["completion_tokens"], line["characters"])
        if settlement is None:
            assert counts == self.book.progress.get(line["id"], Counts()) and line["owner"] == "owner"
        else:
            assert (counts, line["cost"], line["outcome"]) == (settlement.counts, settlement.cost, settlement.outcome)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("kind", "num_examples"), [("sqlite", 25), ("postgresql", 8)])
def test_rows_agree_with_the_rules(request: pytest.FixtureRequest, kind: str, num_examples: int) -> None:
    with TemporaryDirectory() as directory:
        if kind == "sqlite":
            copied = copy(request.getfixturevalue("sqlite_template"), Path(directory) / "ledger.db")
            url = f"sqlite:///{copied}"
        else:
            url = request.getfixturevalue("postgresql_url")
        machine = type("Machine", (LedgerMachine,), {"url": url})
        run_state_machine_as_test(
            machine, settings=settings(max_examples=num_examples, stateful_step_count=20, deadline=None)
        )
