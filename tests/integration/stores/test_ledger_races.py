"""Eight processes at one key: not one request more than the limit or the budget lets through, nor one less."""

import subprocess
import sys

import pytest

from serve_app.stores.database import Database
from serve_app.use_cases.callers import Dialect, Principal
from tests.integration.stores.ledger_rows import add_key, assert_consistent, row, rows

NUM_PROCESSES = 8
PER_PROCESS = 50
CREDITS = 1_000_000


def hammer(url: str, dialect: Dialect, principal: Principal) -> int:
    """How many of the requests of all processes were admitted."""
    command = [sys.executable, "-m", "tests.integration.stores.hammer", url, dialect.value]
    command += [principal.key_id, principal.account, str(PER_PROCESS)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(NUM_PROCESSES)
    ]
    try:
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return sum(int(process.communicate(timeout=60)[0]) for process in processes)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.timeout(120)
async def test_exactly_a_hundred_of_four_hundred_requests_pass_in_a_minute(
    database: Database, database_url: str
) -> None:
    principal = await add_key(database)
    assert hammer(database_url, Dialect.AITEXTGEN, principal) == 100
    assert (await row(database, "rate_windows", name="minute"))["used"] == 100
    assert (await row(database, "rate_windows", name="day"))["used"] == 100
    assert len(await rows(database, "ledger")) == 100
    await assert_consistent(database)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("budget", "credit"), [(37, None), (None, 37), (90, 37)])
async def test_money_for_thirty_seven_requests_admits_thirty_seven(
    database: Database, database_url: str, budget: int | None, credit: int | None
) -> None:
    principal = await add_key(
        database,
        budget=None if budget is None else budget * 10 * CREDITS,
        credit=None if credit is None else credit * 10 * CREDITS,
    )
    assert hammer(database_url, Dialect.TOTALGPT, principal) == 37
    assert (await row(database, "keys", id=principal.key_id))["spent"] == 370 * CREDITS
    await assert_consistent(database)
