"""The ledger's rules: what is held is given back or spent, exactly once, and no cap is overshot."""

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from serve_app.ledger.book import Book, Purse
from serve_app.ledger.entries import Counts, Line, Opening, Outcome, Progress, Refusal, Settlement, Verdict, Visit
from serve_app.limits.windows import Window, WindowState

MINUTE = Window("minute", 2, 60.0)
TOKENS = Window("tokens", 100, 60.0, "tokens")
LINE = Line("r1", "acme", "key", "totalgpt", "base", "owner", held=10, held_tokens=40)


def make_book(*, budget: int | None = None, credit: int | None = None) -> Book:
    return Book(keys={"key": Purse(budget)}, accounts={"acme": Purse(credit)})


def open_line(book: Book, line: Line = LINE, *, windows: tuple[Window, ...] = (), now: float = 0.0) -> Verdict:
    [verdict] = book.apply([Opening(line, windows)], now)
    assert isinstance(verdict, Verdict)
    return verdict


def settle(book: Book, cost: int = 7, counts: Counts | None = None, *, line: Line = LINE, now: float = 0.0) -> bool:
    [is_closed] = book.apply([Settlement(line, counts or Counts(3, 2, 5), cost, Outcome.COMPLETED, (TOKENS,))], now)
    return is_closed is True


def test_holding_and_settling_moves_money_once() -> None:
    book = make_book(budget=100, credit=50)
    assert open_line(book).refusal is None
    assert (book.keys["key"].reserved, book.accounts["acme"].reserved) == (10, 10)
    settle(book)
    settle(book, 9)
    assert book.keys["key"] == Purse(100, spent=7) and book.accounts["acme"] == Purse(50, spent=7)
    assert [settlement.cost for settlement in book.settled] == [7]


@pytest.mark.parametrize(("budget", "credit"), [(19, None), (None, 19), (19, 19)])
def test_neither_budget_nor_credit_is_overshot_by_what_is_only_held(budget: int | None, credit: int | None) -> None:
    book = make_book(budget=budget, credit=credit)
    assert open_line(book).refusal is None
    assert open_line(book, replace(LINE, id="r2")).refusal is Refusal.CREDIT
    settle(book, cost=9)
    assert open_line(book, replace(LINE, id="r3")).refusal is None


def test_request_without_credit_counts_as_a_request_and_takes_no_tokens() -> None:
    book = make_book(credit=9)
    verdict = open_line(book, windows=(MINUTE, TOKENS))
    assert verdict.refusal is Refusal.CREDIT
    assert [standing.remaining for standing in verdict.standings] == [1, 100]
    assert book.opened == []


def test_full_window_comes_before_lack_of_credit_and_changes_nothing() -> None:
    book = make_book(credit=9)
    book.windows["key", "totalgpt", "minute"] = WindowState(0.0, 2)
    assert open_line(book, windows=(MINUTE,), now=1.0).refusal is Refusal.WINDOW
    assert book.changed_windows == set()


def test_what_costs_nothing_needs_no_credit() -> None:
    assert open_line(make_book(credit=0), replace(LINE, held=0)).refusal is None


def test_concurrent_requests_are_bounded_by_key_and_dialect() -> None:
    book = make_book()
    first, second = replace(LINE, id="a"), replace(LINE, id="b")
    verdicts = book.apply([Opening(line, (MINUTE,), max_concurrent=1) for line in (first, second)], 0.0)
    assert [verdict and verdict.refusal for verdict in verdicts] == [None, Refusal.CONCURRENCY]
    assert verdicts[1] is not None and verdicts[1].standings[0].remaining == 1
    settle(book, line=first)
    assert book.apply([Opening(second, (), max_concurrent=1)], 0.0) == [Verdict(())]


def test_tokens_that_were_not_produced_go_back_to_their_window() -> None:
    book = make_book()
    open_line(book, windows=(TOKENS,), now=5.0)
    settle(book, counts=Counts(3, 2), line=replace(LINE, created_at=5.0), now=30.0)
    assert book.windows["key", "totalgpt", "tokens"] == WindowState(5.0, 5)


def test_tokens_do_not_go_back_to_a_window_that_was_opened_later() -> None:
    book = make_book()
    open_line(book, windows=(TOKENS,), now=5.0)
    open_line(book, replace(LINE, id="r2"), windows=(TOKENS,), now=70.0)
    settle(book, counts=Counts(3, 2), line=replace(LINE, created_at=5.0), now=71.0)
    assert book.windows["key", "totalgpt", "tokens"] == WindowState(70.0, 40)


def test_a_settlement_says_whether_it_closed_the_line() -> None:
    book = make_book()
    open_line(book)
    assert [settle(book), settle(book)] == [True, False]
    assert book.keys["key"] == Purse(spent=7)


def test_progress_of_a_settled_line_is_forgotten() -> None:
    book = make_book()
    open_line(book)
    book.apply([Progress("r1", Counts(1)), Progress("unknown", Counts(1))], 0.0)
    assert book.progress == {"r1": Counts(1)}
    settle(book)
    book.apply([Progress("r1", Counts(2))], 0.0)
    assert book.progress == {}


def test_visits_count_and_are_refused_as_others() -> None:
    book = make_book()
    verdicts = book.apply([Visit("key", "acme", "totalgpt", (MINUTE,))] * 3, 0.0)
    assert [verdict and verdict.refusal for verdict in verdicts] == [None, None, Refusal.WINDOW]


def test_usage_sums_by_the_day_of_settlement() -> None:
    book = make_book()
    for number, now in enumerate((0.0, 86399.0, 86400.0)):
        line = replace(LINE, id=str(number))
        open_line(book, line)
        settle(book, line=line, now=now)
    sums = {key[0]: (usage.requests, usage.counts, usage.cost) for key, usage in book.usage.items()}
    assert sums == {"1970-01-01": (2, Counts(6, 4, 10), 14), "1970-01-02": (1, Counts(3, 2, 5), 7)}


class BookMachine(RuleBasedStateMachine):
    """Opens and settles at random, against sums over everything that was ever opened and settled."""

    BUDGETS = ((0, 60), (1, None))

    def __init__(self) -> None:
        super().__init__()
        self.book = Book(
            keys={f"key-{key}": Purse(budget) for key, budget in self.BUDGETS}, accounts={"acme": Purse(100)}
        )
        self.open: dict[str, Line] = {}
        self.costs: dict[str, tuple[Line, int]] = {}
        self.number = 0

    @rule(key=st.integers(0, 1), held=st.integers(0, 40))
    def start(self, key: int, held: int) -> None:
        self.number += 1
        line = Line(str(self.number), "acme", f"key-{key}", "inferkit", "base", "owner", held, 0)
        of_account = sum(line.held for line in self.open.values()) + sum(cost for _, cost in self.costs.values())
        of_key = sum(line.held for line in self.open.values() if line.key_id == f"key-{key}")
        of_key += sum(cost for line, cost in self.costs.values() if line.key_id == f"key-{key}")
        fits = held == 0 or (of_account + held <= 100 and (key == 1 or of_key + held <= 60))
        [verdict] = self.book.apply([Opening(line, ())], 0.0)
        assert verdict is not None and (verdict.refusal is None) == fits
        if fits:
            self.open[line.id] = line

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        if not self.number:
            return
        line_id = str(data.draw(st.integers(1, self.number)))
        line = self.open.pop(line_id, None)
        if line is None:  # refused or settled already
            line = Line(line_id, "acme", "key-0", "inferkit", "base", "owner", 5, 0)
            self.book.apply([Settlement(line, Counts(), 5, Outcome.LOST)], 0.0)
            return
        cost = data.draw(st.integers(0, line.held))
        self.costs[line.id] = (line, cost)
        self.book.apply([Settlement(line, Counts(), cost, Outcome.COMPLETED)], 0.0)

    @invariant()
    def sums_agree(self) -> None:
        account = self.book.accounts["acme"]
        assert account.reserved == sum(line.held for line in self.open.values())
        assert account.spent == sum(cost for _, cost in self.costs.values()) <= 100
        assert self.book.lines == set(self.open)
        assert self.book.num_open.get(("key-0", "inferkit"), 0) == sum(
            line.key_id == "key-0" for line in self.open.values()
        )
        assert sum(usage.cost for usage in self.book.usage.values()) == account.spent
        assert sum(purse.reserved for purse in self.book.keys.values()) == account.reserved


BookMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestBook = BookMachine.TestCase
