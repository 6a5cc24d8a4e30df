"""A process that runs jobs as fast as it can: `python -m tests.integration.stores.claimer URL WORKER SEED`.

It says `ready`, starts at the first line that it is sent, and ends when nothing is open. Sometimes it oversleeps its
lease, and tries to publish nevertheless: `OVERSLEEPER` does so with its first claim until another has taken the job,
and says `asleep` before. At the end each prints how many jobs it has published, how often its claim was lost, and
the most jobs that it saw running, in all and of one account.
"""

import asyncio
import random
import sys
import time
from collections import Counter

from sqlalchemy import select

from serve_app.config import FineTuningConfig
from serve_app.jobs import transitions
from serve_app.jobs.job import Job
from serve_app.stores.database import Database, open_database
from serve_app.stores.job_queue import SqlJobQueue
from serve_app.stores.tables import jobs
from serve_app.use_cases.job_queue import ClaimLost
from tests.fake_fine_tuner import finished

CONFIG = FineTuningConfig(max_jobs=3, max_jobs_per_account=1, lease_s=0.5, max_attempts=1000, retry_s=0.01)
OVERSLEEPS = 0.03
OVERSLEEPER = "worker-0"


async def run(database: Database, worker: str, dice: random.Random) -> list[int]:
    queue = SqlJobQueue(database, CONFIG)
    published = lost = most = most_of_account = 0
    oversleeps = worker == OVERSLEEPER
    while True:
        claim = await queue.claim(worker, time.time(), besides=(), takes_over=True)
        accounts = await open_jobs(database, "running")
        most = max(most, sum(accounts.values()))
        most_of_account = max(most_of_account, *accounts.values(), 0)
        if isinstance(claim, Job):
            raise AssertionError(f"{claim.id} was left {claim.attempts} times")
        if claim is None:
            if not accounts and not await open_jobs(database, "queued"):
                return [published, lost, most, most_of_account]
            await asyncio.sleep(0.001)
            continue
        if oversleeps:
            oversleeps = False
            say("asleep")
            while await fence_of(database, claim.job.id) == claim.job.fence:
                await asyncio.sleep(0.01)
        else:
            await asyncio.sleep(0.6 if dice.random() < OVERSLEEPS else dice.uniform(0, 0.004))
        try:
            await queue.advance(
                claim.job.id,
                claim.job.fence,
                lambda job: transitions.published(job, time.time(), finished(), training_time_s=1.0),
            )
            published += 1
        except ClaimLost:
            lost += 1


def say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


async def fence_of(database: Database, job_id: str) -> int:
    async with database.read() as connection:
        return int((await connection.execute(select(jobs.c.fence).where(jobs.c.id == job_id))).scalar_one())


async def open_jobs(database: Database, status: str) -> Counter[str]:
    """How many of each account are in this status, all at one moment."""
    async with database.read() as connection:
        return Counter((await connection.execute(select(jobs.c.account).where(jobs.c.status == status))).scalars())


async def main(url: str, worker: str, seed: int) -> list[int]:
    async with open_database(url) as database:
        say("ready")
        await asyncio.to_thread(sys.stdin.readline)
        return await run(database, worker, random.Random(seed))


if __name__ == "__main__":
    url, worker, seed = sys.argv[1:]
    sys.stdout.write(" ".join(map(str, asyncio.run(main(url, worker, int(seed))))))
