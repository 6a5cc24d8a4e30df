"""Measures what admission and settlement cost: `python -m load_tests.admission_speed sqlite:////tmp/speed.db`.

Each URL names a database with the newest schema (an SQLite file is made). Requests are admitted and settled as the
service does it, by as many clients at once as `--concurrency` says, each with a key of its own in one account; half of
the operations are admissions, half settlements. The table shows milliseconds from call to commit, and requests in a
second.
"""

import argparse
import asyncio
import json
import statistics
import time
from dataclasses import asdict, dataclass
from secrets import token_hex

from sqlalchemy import make_url

from serve_app.config import BillingConfig, LimitsConfig
from serve_app.ledger.billing import make_prices
from serve_app.ledger.entries import Counts, Outcome
from serve_app.stores.accounts import SqlAccountStore
from serve_app.stores.admission import SqlAdmissionStore
from serve_app.stores.database import open_database
from serve_app.stores.keys import SqlKeyStore
from serve_app.use_cases.accounts import Accounts
from serve_app.use_cases.admission import Admission, Rules, make_limits
from serve_app.use_cases.callers import Caller, Dialect, Principal
from serve_app.use_cases.keys import Keys

_WINDOW = {"name": "minute", "quota": 10**9, "period_s": 60}
_DAY = {"name": "day", "quota": 10**9, "period_s": 86400}
_MOST = Counts(prompt_tokens=100, completion_tokens=200)
_COUNTS = Counts(prompt_tokens=100, completion_tokens=150)


@dataclass(frozen=True, slots=True)
class Cell:
    """Milliseconds are medians and 95th percentiles."""

    database: str
    concurrency: int
    requests_per_s: float
    admit_ms: float
    admit_p95_ms: float
    settle_ms: float
    settle_p95_ms: float


async def measure(url: str, concurrency: int, seconds: float) -> Cell:
    async with open_database(url) as database:
        account = f"speed-{token_hex(4)}"
        await Accounts(SqlAccountStore(database)).create(account, actor="benchmark")
        keys = Keys(SqlKeyStore(database), bytes(32))
        principals = []
        for number in range(concurrency):
            _, record = await keys.create(account, f"key {number}", actor="benchmark")
            principals.append(record.principal())
        limits = LimitsConfig.model_validate({"aitextgen": {"windows": [_WINDOW, _DAY]}})
        rules = Rules(make_prices(BillingConfig()), make_limits(limits))
        admission = Admission(SqlAdmissionStore(database), rules, owner="benchmark")
        admit_s: list[float] = []
        settle_s: list[float] = []

        async def client(principal: Principal, until: float) -> None:
            while (started_at := time.perf_counter()) < until:
                caller = Caller(token_hex(8), Dialect.AITEXTGEN, principal)
                reservation = await admission.admit(caller, "model", _MOST)
                admitted_at = time.perf_counter()
                await reservation.settle(Outcome.COMPLETED, about_to_send=_COUNTS)
                admit_s.append(admitted_at - started_at)
                settle_s.append(time.perf_counter() - admitted_at)

        await asyncio.gather(*(client(principal, time.perf_counter() + seconds / 4) for principal in principals))
        admit_s.clear()
        settle_s.clear()
        started_at = time.perf_counter()
        await asyncio.gather(*(client(principal, started_at + seconds) for principal in principals))
        took_s = time.perf_counter() - started_at
    return Cell(
        make_url(url).get_backend_name(),
        concurrency,
        round(len(admit_s) / took_s, 1),
        *(
            round(figure, 2)
            for times in (admit_s, settle_s)
            for figure in (_percentile(times, 50), _percentile(times, 95))
        ),
    )


def _percentile(times_s: list[float], percent: int) -> float:
    return statistics.quantiles(times_s, n=100)[percent - 1] * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("urls", nargs="+")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=4)
    arguments = parser.parse_args()
    for url in arguments.urls:
        for concurrency in arguments.concurrency:
            print(json.dumps(asdict(asyncio.run(measure(url, concurrency, arguments.seconds)))))  # noqa: T201


if __name__ == "__main__":
    main()
