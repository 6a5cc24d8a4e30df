"""What a soak of the service judges, and how: books, exchanges, growth, and the page that tells of them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from sqlalchemy import text

from load_tests.service_soak.books import Books, read_books, read_lines
from load_tests.service_soak.census import Held, census, role_of
from load_tests.service_soak.exchange import End, Exchange, Line, Received, fault_of
from load_tests.service_soak.records import Ending, Moment, Run, append
from load_tests.service_soak.report import RAW_NAME, write_report
from load_tests.service_soak.verdict import MIB, faults, growths, slope
from serve_app.config import BillingConfig, LimitsConfig
from serve_app.ledger.billing import make_prices
from serve_app.ledger.entries import Counts, Outcome
from serve_app.stores.accounts import SqlAccountStore
from serve_app.stores.admission import SqlAdmissionStore
from serve_app.stores.database import Database, open_database
from serve_app.stores.keys import SqlKeyStore
from serve_app.use_cases.accounts import Accounts
from serve_app.use_cases.admission import Admission, Rules, make_limits
from serve_app.use_cases.callers import Caller, Dialect
from serve_app.use_cases.keys import Keys

_COMPLETED = Line("completed", 5, 7, 30, 33)


def books(**fields: object) -> Books:
    quiet = Books(0, 100, 10, 0, 0, 0, 2, ())
    return replace(quiet, **fields)  # type: ignore[arg-type]


def held(pid: int = 1, *, role: str = "Ingress", memory: float = 200, fds: int = 50, threads: int = 20) -> Held:
    size = int(memory * MIB)
    return Held(pid, role, size, size, fds, threads)


def moment(minute: float, *processes: Held, **fields: object) -> Moment:
    quiet = Moment(minute * 60, processes, books(), 1, 1, 1, int(minute * 600), 0, 0, 50.0)
    return replace(quiet, **fields)  # type: ignore[arg-type]


def ending(**fields: object) -> Ending:
    quiet = Ending(books(), {"stream 200": 5, "abandoned 0": 1}, {"complete": 6}, [], 3, 1, 1, 0, 2, [])
    return replace(quiet, **fields)  # type: ignore[arg-type]


def test_the_slope_is_that_of_most_moments() -> None:
    assert slope([0, 1, 2, 3, 4], [10, 11, 99, 13, 14]) == 1


def test_a_process_that_keeps_what_it_has_is_flat_whatever_peaks_it_had() -> None:
    moments = [moment(minute, held(memory=600 if minute in (25, 40) else 200)) for minute in range(1, 61)]
    assert all(one.is_flat for one in growths(moments))
    assert faults(moments, ending()) == []


def test_what_is_taken_in_the_first_third_does_not_count() -> None:
    moments = [moment(minute, held(memory=min(800, 200 + 60 * minute))) for minute in range(1, 61)]
    assert faults(moments, ending()) == []


def test_half_a_mebibyte_a_minute_is_a_leak() -> None:
    moments = [moment(minute, held(memory=200 + 0.5 * minute)) for minute in range(1, 61)]
    [told] = faults(moments, ending())
    assert told == "memory of Ingress (1) grew by 19.5 MiB, more than 16.0 MiB"


def test_descriptors_threads_and_processes_that_grow_are_told() -> None:
    def processes(minute: int) -> list[Held]:
        others = [held(100 + number, role="left", memory=1) for number in range(minute // 10)]
        return [held(fds=50 + minute // 2, threads=20 + minute // 4), *others]

    told = faults([moment(minute, *processes(minute)) for minute in range(1, 61)], ending())
    assert [one.partition(" grew")[0] for one in told] == [
        "file descriptors of Ingress (1)",
        "threads of Ingress (1)",
        "number of processes (0)",
    ]


def test_a_process_that_did_not_live_all_the_time_is_not_judged() -> None:
    moments = [
        moment(minute, held(), *([held(2, memory=100 * minute)] if minute % 3 else [])) for minute in range(1, 61)
    ]
    assert {one.pid for one in growths(moments)} == {0, 1}


def test_rays_log_monitor_may_open_files_up_to_its_own_bound() -> None:
    def moments(fds: int) -> list[Moment]:
        return [moment(minute, held(role="log_monitor", fds=40 + fds * minute)) for minute in range(1, 61)]

    assert faults(moments(2), ending()) == []
    assert faults(moments(4), ending()) == ["log_monitor has 280 file descriptors"]


def test_too_few_moments_are_not_judged() -> None:
    with pytest.raises(ValueError, match="too few"):
        growths([moment(1, held()), moment(2, held())])


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"books": books(open_reservations=1)}, "1 open reservations are left"),
        ({"books": books(pending_webhooks=2)}, "2 webhooks that were not delivered are left"),
        ({"books": books(disagreements=("sums differ",))}, "sums differ"),
        ({"answers": {"chat stream 503": 2}}, "2 answers with 5xx"),
        ({"problems": ["a wrong answer"]}, "a wrong answer"),
        ({"models_trained": 0}, "no model was trained"),
        ({"errors": ["it broke"]}, "1 errors in the service's logs, the first: it broke"),
    ],
)
def test_whatever_is_wrong_at_the_end_is_told(fields: dict[str, object], told: str) -> None:
    assert faults([moment(minute, held()) for minute in range(1, 61)], ending(**fields)) == [told]


@pytest.mark.parametrize(
    ("end", "received", "lines", "is_right"),
    [
        (End.COMPLETE, [Received(5, 7)], [_COMPLETED], True),
        (End.COMPLETE, [Received(characters=30)], [_COMPLETED], True),
        (End.COMPLETE, [Received(5, 6)], [_COMPLETED], False),
        (End.COMPLETE, [Received(5, 7)], [], False),
        (End.COMPLETE, [Received(5, 7)], [_COMPLETED, _COMPLETED], False),
        (End.COMPLETE, [Received(5, 7)], [replace(_COMPLETED, outcome="lost")], False),
        (End.LEFT, [], [], True),
        (End.LEFT, [], [Line("cancelled", 0, 0, 0, 0)], True),
        (End.LEFT, [Received(5, 3), Received(5, 9)], [replace(_COMPLETED, outcome="cancelled")], True),
        (End.LEFT, [Received(5, 8), Received(5, 9)], [replace(_COMPLETED, outcome="cancelled")], False),
        (End.LEFT, [Received(5, 3), Received(5, 4)], [], False),
        (End.LEFT, [], [replace(_COMPLETED, outcome="failed")], False),
        (End.REFUSED, [], [Line("failed", 0, 0, 0, 0)], True),
        (End.REFUSED, [], [_COMPLETED], False),
    ],
)
def test_the_ledger_says_what_the_client_received(
    end: End, received: list[Received], lines: list[Line], is_right: bool
) -> None:
    told = fault_of(Exchange("id", "stream", end, received), lines)
    assert (told == "") is is_right
    assert is_right or told.startswith("stream id ")


@asynccontextmanager
async def ledger(path: Path) -> AsyncIterator[Database]:
    """With one settled and one open request of an account that has credit, and one of an account that has no bound."""
    async with open_database(f"sqlite:///{path}") as database:
        keys = Keys(SqlKeyStore(database), bytes(32))
        admission = Admission(
            SqlAdmissionStore(database), Rules(make_prices(BillingConfig()), make_limits(LimitsConfig())), owner="me"
        )
        for account, credit in (("bounded", 10**9), ("free", None)):
            await Accounts(SqlAccountStore(database)).create(account, credit=credit, actor="test")
            _, record = await keys.create(account, "a key", actor="test")
            for number in range(2 if account == "bounded" else 1):
                caller = Caller(f"{account}-{number}", Dialect.TOTALGPT, record.principal())
                reservation = await admission.admit(caller, "model", Counts(5, 10, 0))
                if number == 0:
                    await reservation.settle(Outcome.COMPLETED, about_to_send=Counts(5, 7, 30))
        yield database


async def test_books_that_agree(tmp_path: Path) -> None:
    async with ledger(tmp_path / "db"):
        found = read_books(tmp_path / "db")
        lines = read_lines(tmp_path / "db")
    assert (found.open_reservations, found.settled, found.disagreements) == (1, 2, ())
    assert {name: [(line.outcome, line.completion_tokens) for line in some] for name, some in lines.items()} == {
        "bounded-0": [("completed", 7)],
        "free-0": [("completed", 7)],
    }


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("UPDATE accounts SET credit = credit - 1 WHERE credit IS NOT NULL", "an account has not spent"),
        ("UPDATE accounts SET reserved = reserved + 1", "an account holds other than"),
        ("UPDATE keys SET spent = spent + 1", "a key has not spent"),
        ("UPDATE keys SET reserved = 0", "a key holds other than"),
        ("UPDATE usage_by_day SET completion_tokens = completion_tokens + 1", "the usage of a key"),
        ("DELETE FROM usage_by_day", "the usage of a key"),
    ],
)
async def test_books_that_disagree(tmp_path: Path, change: str, what: str) -> None:
    async with ledger(tmp_path / "db") as database:
        async with database.write() as connection:
            await connection.execute(text(change))
        [told] = read_books(tmp_path / "db").disagreements
    assert told.startswith(what)


@pytest.mark.parametrize(
    ("command", "name", "role"),
    [
        (["ray::ServeReplica:tritext:Generator-a-model"], "ray::ServeRepl", "Generator-a-model"),
        (["ray::ServeReplica:tritext:Ingress.handle_request"], "ray::ServeRepl", "Ingress"),
        (["ray::FineTuneWorker.run"], "ray::FineTuneW", "FineTuneWorker"),
        (["ray::IDLE", ""], "ray::IDLE", "IDLE"),
        (["/usr/bin/python", "-u", "/somewhere/log_monitor.py", "--x"], "python", "log_monitor"),
        (["/usr/bin/python", "-m", "a.module"], "python3.11", "a.module"),
        (["haproxy", "-f", "x"], "haproxy", "haproxy"),
        ([], "raylet", "raylet"),
    ],
)  # fmt: skip
def test_processes_are_called_what_they_are(command: list[str], name: str, role: str) -> None:
    assert role_of(command, name) == role


def test_a_census_tells_what_this_process_holds() -> None:
    with open(__file__, encoding="utf-8"):
        [me, *_] = census(psutil.Process())
        assert me.role == "launcher"
        assert me.fds == psutil.Process().num_fds()
        assert 0 < me.pss <= me.rss * 1.1


def test_the_page_is_made_from_the_raw_records(tmp_path: Path) -> None:
    raw = tmp_path / RAW_NAME
    append(raw, Run("a command", "2026-01-01T00:00:00+00:00", {"cores": 2}, 6))
    for minute in range(1, 13):
        append(raw, moment(minute, held(), held(2, role="Tokenizer", memory=100 + 10 * minute)))
    append(raw, ending())
    assert write_report(tmp_path) == [
        "memory of Tokenizer (2) grew by 70.0 MiB, more than 16.0 MiB",
        "memory of all of them (0) grew by 70.0 MiB, more than 32.0 MiB",
    ]
    page = (tmp_path / "soak.md").read_text()
    assert "NOT SOUND" in page
    assert "| Ingress | 200.0 MiB, 200.0 MiB; 0.0 MiB | 50, 50; 0 | 20, 20; 0 |  |" in page
    assert "; **70.0 MiB** |" in page
    assert "| abandoned | 1 times not waited for |" in page
    assert (tmp_path / "memory.svg").stat().st_size > 1000
    assert (tmp_path / "load.svg").stat().st_size > 1000


def test_a_soak_without_its_end_has_no_page(tmp_path: Path) -> None:
    append(tmp_path / RAW_NAME, Run("a command", "2026-01-01T00:00:00+00:00", {}, 6))
    with pytest.raises(ValueError, match="did not come to its end"):
        write_report(tmp_path)
