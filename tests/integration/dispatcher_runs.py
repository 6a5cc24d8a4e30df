"""The dispatcher deployment on a real Ray Serve, with a node that trains nothing:
`python -m tests.integration.dispatcher_runs`.

Prints what each scenario came to, as one JSON object. The database and the objects lie under TRITEXT_HOME.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import serve

from deployments.config import GraphConfig
from deployments.ray_fine_tuner import MakeNode
from deployments.training import Alive, CheckpointSaved, Started, TrainingEvent, TrainingRequest
from serve_app.config import AppConfig, Secrets
from serve_app.dispatcher import DISPATCHER, DispatcherClient, DispatcherReplica
from serve_app.jobs import transitions
from serve_app.jobs.job import Job, JobStatus
from serve_app.stores.database import Database, open_database
from serve_app.stores.jobs import SqlJobs
from serve_app.use_cases import dispatch
from tests.fake_fine_tuner import finished, progress
from tests.integration.ray_runs import ended_after
from tests.integration.scenarios import only_replica
from tests.job_rows import add_job, stored

APP = "tritext"
CONFIG = AppConfig.model_validate(
    {
        "graph": {"models": [{"id": "m", "source": "/nowhere"}], "trainer": {"num_cpus": 0}},
        "fine_tuning": {"lease_s": 3, "max_jobs": 4, "max_jobs_per_account": 4},
    }
)


class Node:
    """Does what the name of the base model says; tells its process as the step that it starts after."""

    def __init__(self, _config: GraphConfig, _home: Path) -> None:
        pass

    async def train(self, request: TrainingRequest) -> AsyncGenerator[TrainingEvent, None]:
        yield Started(os.getpid(), 2, 0, 0, 0, 0)
        if request.base_model == "endless" and request.checkpoint is None:
            yield CheckpointSaved(1, "c" * 64)
            while True:
                yield Alive()
                await asyncio.sleep(0.1)
        yield progress(2)
        yield finished()


class NudgedReplica(DispatcherReplica):
    """Looks for nothing by itself: what becomes of a job under it, a nudge has done."""

    async def __init__(self, config: AppConfig, make_node: MakeNode) -> None:  # type: ignore[misc]  # Serve awaits it
        dispatch.LOOK_S = 3600.0
        await super().__init__(config, make_node)  # type: ignore[misc]


class Bench:
    def __init__(self, database: Database, client: DispatcherClient) -> None:
        self.database = database
        self._jobs = SqlJobs(database)
        self._client = client

    async def add(self, base_model: str) -> Job:
        job = await add_job(self.database, base_model=base_model, created_at=time.time())
        self._client.nudge()
        return job

    async def act(self, job: Job, transition: Callable[[Job, float], transitions.Change]) -> None:
        await self._jobs.change(job.account, job.id, lambda job: transition(job, time.time()))
        self._client.nudge()

    async def until(self, job: Job, condition: Callable[[Job], bool]) -> Job:
        async with asyncio.timeout(60):
            while not condition(found := await stored(self.database, job)):
                await asyncio.sleep(0.02)
        return found

    async def running(self, job: Job, *, fence: int = 1) -> psutil.Process:
        """The worker, once it has saved a checkpoint."""
        found = await self.until(job, lambda job: job.started_at is not None and job.fence == fence and job.step > 2)
        async with asyncio.timeout(60):
            while not await self._jobs.checkpoints(job.account, job.id, after=None, limit=1):
                await asyncio.sleep(0.02)
        return psutil.Process(found.step)

    @asynccontextmanager
    async def nudging(self) -> AsyncGenerator[None, None]:
        """Nudges again and again, since a nudge that is late for a dispatcher is lost."""

        async def nudge() -> None:
            while True:
                self._client.nudge()
                await asyncio.sleep(1)

        nudges = asyncio.create_task(nudge())
        try:
            yield
        finally:
            nudges.cancel()


async def quick(bench: Bench) -> JobStatus:
    job = await bench.add("quick")
    return (await bench.until(job, lambda job: job.status.is_final)).status


def stopped_by(transition: Callable[[Job, float], transitions.Change]) -> Callable[[Bench], Awaitable[Any]]:
    async def run(bench: Bench) -> list[Any]:
        job = await bench.add("endless")
        worker = await bench.running(job)
        await bench.act(job, transition)
        ended_s = await ended_after(worker)
        return [(await stored(bench.database, job)).status, ended_s]

    return run


async def worker_killed(bench: Bench) -> list[Any]:
    job = await bench.add("endless")
    (await bench.running(job)).kill()
    done = await bench.until(job, lambda job: job.status.is_final)
    return [done.status, done.fence]


async def dispatcher_killed(bench: Bench) -> list[Any]:
    job = await bench.add("endless")
    worker = await bench.running(job)
    only_replica(APP, DISPATCHER).kill()
    ended_s = await ended_after(worker)
    done = await bench.until(job, lambda job: job.status.is_final)
    return [done.status, done.fence, ended_s]


async def dispatcher_stops(bench: Bench) -> list[Any]:
    job = await bench.add("endless")
    worker = await bench.running(job)
    await asyncio.to_thread(serve.delete, APP)
    left = await stored(bench.database, job)
    return [left.status, left.attempts, await ended_after(worker)]


Scenarios = dict[str, Callable[[Bench], Awaitable[Any]]]

NUDGED: Scenarios = {
    "quick": quick,
    "cancelled": stopped_by(transitions.cancelled),
    "paused": stopped_by(transitions.paused),
}
SCENARIOS: Scenarios = {
    "worker killed": worker_killed,
    "dispatcher killed": dispatcher_killed,
    "dispatcher stops": dispatcher_stops,
}


async def bench_of(replica: type[DispatcherReplica], database: Database) -> Bench:
    deployment = serve.deployment(replica, name=DISPATCHER, health_check_period_s=1)
    handle = await asyncio.to_thread(serve.run, deployment.bind(CONFIG, Node), name=APP, route_prefix=None)
    return Bench(database, DispatcherClient(handle))


async def main() -> dict[str, Any]:
    await asyncio.to_thread(serve.start, proxy_location="Disabled")
    async with open_database(Secrets.load().database_url(CONFIG)) as database:
        bench = await bench_of(NudgedReplica, database)
        async with bench.nudging():
            found = {name: await scenario(bench) for name, scenario in NUDGED.items()}
        await asyncio.to_thread(serve.delete, APP)
        bench = await bench_of(DispatcherReplica, database)
        return found | {name: await scenario(bench) for name, scenario in SCENARIOS.items()}


if __name__ == "__main__":
    Secrets.load(create=True)
    ray.init(address="local", num_cpus=2, object_store_memory=100_000_000, include_dashboard=False, log_to_driver=False)
    try:
        sys.stdout.write(json.dumps(asyncio.run(main())) + "\n")
    finally:
        serve.shutdown()
        ray.shutdown()
