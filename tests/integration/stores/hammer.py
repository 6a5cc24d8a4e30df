"""A process that admits as fast as it can: `python -m tests.integration.stores.hammer URL DIALECT KEY ACCOUNT COUNT`.

It says `ready`, starts at the first line that it is sent, and prints how many requests were admitted.
"""

import asyncio
import sys
from secrets import token_hex

from deployments.errors import OutOfCredits, RateLimited
from serve_app.ledger.entries import Counts, Outcome
from serve_app.stores.database import open_database
from serve_app.use_cases.callers import Caller, Dialect, Principal
from tests.integration.stores.ledger_rows import make_admission

MOST = Counts(prompt_tokens=2, completion_tokens=2)
"""Costs ten credits in the dialects that bill tokens."""


async def hammer(url: str, dialect: str, key: str, account: str, count: int) -> int:
    async with open_database(url) as database:
        admission = make_admission(database)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)

        async def attempt() -> bool:
            try:
                caller = Caller(token_hex(8), Dialect(dialect), Principal(account, key))
                reservation = await admission.admit(caller, "base", MOST)
            except (RateLimited, OutOfCredits):
                return False
            await asyncio.sleep(0.001)
            await reservation.settle(Outcome.COMPLETED, about_to_send=MOST)
            return True

        # Some at once, so that groups form, and several groups one after the other.
        return sum([sum(await asyncio.gather(*(attempt() for _ in range(5)))) for _ in range(count // 5)])


if __name__ == "__main__":
    url, dialect, key, account, count = sys.argv[1:]
    sys.stdout.write(str(asyncio.run(hammer(url, dialect, key, account, int(count)))))
