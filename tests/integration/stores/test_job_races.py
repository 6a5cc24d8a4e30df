"""Several processes at one queue: every job is published once, and never more run than are allowed."""

import subprocess
import sys

import pytest

from serve_app.stores.database import Database
from tests.integration.stores.claimer import CONFIG, OVERSLEEPER
from tests.job_rows import add_endpoint, add_job, rows

NUM_PROCESSES = 6
NUM_JOBS = 200


def race(url: str) -> list[list[int]]:
    """What each process has printed. The one that oversleeps has claimed its first job before the others start."""
    command = [sys.executable, "-m", "tests.integration.stores.claimer", url]
    processes = [
        subprocess.Popen(
            [*command, f"worker-{number}", str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for number in range(NUM_PROCESSES)
    ]
    try:
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for number, process in enumerate(processes):
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            if f"worker-{number}" == OVERSLEEPER:
                assert process.stdout.readline() == "asleep\n"
        return [list(map(int, process.communicate(timeout=100)[0].split())) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.timeout(150)
async def test_racing_dispatchers_publish_every_job_once(database: Database, database_url: str) -> None:
    jobs = [await add_job(database, account=f"account-{number % 4}") for number in range(NUM_JOBS)]
    for number in range(4):
        await add_endpoint(database, f"account-{number}", ["finetune.completed"])
    published, lost, most, most_of_account = zip(*race(database_url), strict=True)
    assert sum(published) == NUM_JOBS
    assert sum(lost) > 0  # so that the fence was needed
    assert max(most) <= CONFIG.max_jobs and max(most_of_account) <= CONFIG.max_jobs_per_account
    assert max(most) > 1  # so that there was a race
    found = await rows(database, "jobs")
    assert {row["id"] for row in found} == {job.id for job in jobs}
    assert {row["status"] for row in found} == {"succeeded"}
    assert {row["job"] for row in await rows(database, "tuned_models")} == {job.id for job in jobs}
    assert len(await rows(database, "webhook_deliveries")) == NUM_JOBS
    ends = [row for row in await rows(database, "job_events") if "successfully" in row["message"]]
    assert len(ends) == NUM_JOBS
    # Each claim has a fence of its own: they were as many as claims were lost and jobs published.
    assert sum(row["fence"] for row in found) == NUM_JOBS + sum(lost)
