"""Everything that fine-tuning needs is killed at random under many jobs: each ends once, and its end is told."""

import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest
import yaml
from psycopg.rows import dict_row

from tests.databases import PostgreSQLServer, running_postgresql
from tests.factories import CORPUS, make_tiny_model
from tests.integration.service import LOCAL_CONFIG, Service, running, wait_until
from tests.seaweedfs import SeaweedFS, running_seaweedfs
from tests.webhook_subscriber import Subscriber, subscribed

SEED = int(os.environ.get("TRITEXT_CHAOS_SEED", "1"))
NUM_JOBS = int(os.environ.get("TRITEXT_CHAOS_JOBS", "5"))
NUM_BLOWS = 4 * NUM_JOBS
"""No more: on a slow machine workers that are killed for ever may never come to their next checkpoint."""
MODEL = "tiny"
EVENTS = ("finetune.completed", "finetune.failed", "finetune.cancelled")
WORKER = "FineTuneWorker"


@pytest.fixture
def postgresql() -> Iterator[PostgreSQLServer]:
    with running_postgresql(keeps_commits=True) as server:
        yield server


@pytest.fixture
def s3() -> Iterator[SeaweedFS]:
    with running_seaweedfs() as server:
        yield server


@pytest.fixture
def service(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, postgresql: PostgreSQLServer, s3: SeaweedFS
) -> Iterator[Service]:
    """A tiny model, two dispatchers, three jobs at a time, leases that end soon; over PostgreSQL and S3."""
    document = yaml.safe_load(LOCAL_CONFIG.read_text())
    [application] = document["applications"]
    checkpoints = {"url": s3.new_url(), "endpoint_url": s3.endpoint_url, "region": "us-east-1"}
    model = {
        "id": MODEL,
        "source": str(make_tiny_model(tmp_path / "model")),
        "engine": {"dtype": "float32", "kv_cache_bytes": 4 * 1024 * 1024},
    }
    application["args"] = {
        "graph": {
            "models": [model],
            "checkpoints": checkpoints,
            "trainer": {"num_cpus": 0, "niceness": 5, "num_threads": 1, "checkpoint_every_steps": 10},
        },
        "fine_tuning": {"max_jobs": 3, "max_jobs_per_account": 3, "lease_s": 6, "retry_s": 0.5, "max_attempts": 1000},
        "limits": {"aitextgen": {"windows": []}},
        "webhooks": {"allowed_networks": ["127.0.0.0/8"], "retry_s": [0.5] * 60},
    }
    for deployment in application["deployments"]:
        if deployment["name"].startswith("Generator"):
            deployment |= {"name": f"Generator-{MODEL}", "ray_actor_options": {"num_cpus": 0.5}}
        if deployment["name"] == "Dispatcher":
            deployment.pop("autoscaling_config", None)
            deployment["num_replicas"] = 2
    config = tmp_path / "chaos.yaml"
    config.write_text(yaml.safe_dump(document))
    url = postgresql.url_of(postgresql.create_database())
    variables = {**s3.environment, "TRITEXT_DATABASE_URL": url}
    _migrate(config, variables)
    home = tmp_path_factory.mktemp("service")
    with running(home, "throughput", config=config, variables=variables) as service:
        yield service


def _migrate(config: Path, variables: dict[str, str]) -> None:
    command = [
        sys.executable,
        "-c",
        "from serve_app.cli import main; main()",
        "database",
        "migrate",
        "--config",
        config,
    ]
    subprocess.run(command, env={**os.environ, **variables}, check=True)


class Chaos:
    """Kills and restarts one thing at a time, `NUM_BLOWS` times or until it is told to stop; `done` counts what. The
    servers that it restarted end with it."""

    def __init__(self, service: Service, postgresql: PostgreSQLServer, s3: SeaweedFS, seed: int) -> None:
        self.done: Counter[str] = Counter()
        self._service = service
        self._postgresql = postgresql
        self._s3 = s3
        self._random = random.Random(seed)
        self._must_stop = threading.Event()
        self._is_over = threading.Event()
        self._may_end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Chaos":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._must_stop.set()
        self._may_end.set()
        self._thread.join(120)

    @property
    def is_over(self) -> bool:
        return self._is_over.is_set()

    def stop(self) -> None:
        """Returns when the last blow is done: what it restarts runs."""
        self._must_stop.set()
        assert self._is_over.wait(120), "a server does not start again"

    def _run(self) -> None:
        blows: Sequence[tuple[str, int, Callable[[], bool]]] = (
            ("worker", 5, lambda: self._kill(WORKER)),
            ("dispatcher", 2, lambda: self._kill("ServeReplica:tritext:Dispatcher")),
            ("generator", 1, lambda: self._kill(f"ServeReplica:tritext:Generator-{MODEL}")),
            ("s3", 2, lambda: self._restart(self._s3)),
            ("database", 2, lambda: self._restart(self._postgresql)),
        )
        while self.done.total() < NUM_BLOWS and not self._must_stop.wait(self._random.uniform(2, 6)):
            [(name, _, blow)] = self._random.choices(blows, [weight for _, weight, _ in blows])
            if blow():
                self.done[name] += 1
        self._is_over.set()
        self._may_end.wait()

    def _kill(self, title: str) -> bool:
        processes = self._service.processes_called(title)
        if not processes:
            return False
        try:
            self._random.choice(processes).kill()
        except psutil.NoSuchProcess:  # it has ended by itself meanwhile
            return False
        return True

    def _restart(self, server: PostgreSQLServer | SeaweedFS) -> bool:
        server.kill()
        time.sleep(self._random.uniform(0.5, 3))
        server.start()
        return True


def until_accepted(client: httpx.Client, path: str, body: Any, **headers: str) -> Any:
    """Sends the request again and again, under one Idempotency-Key, until it is accepted."""
    deadline = time.monotonic() + 120
    while True:
        try:
            answer = client.post(path, json=body, headers=headers)
            if answer.is_success:
                return answer.json()
            assert answer.status_code in (409, 500, 502, 503, 504), answer.text
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, "the request was not accepted within 120 s"
        time.sleep(0.5)


def rows(url: str, statement: str) -> list[dict[str, Any]]:
    with psycopg.connect(url, autocommit=True, row_factory=dict_row) as connection:
        return connection.execute(statement.encode()).fetchall()


def start_jobs(client: httpx.Client, number: int) -> list[str]:
    jobs = []
    for index in range(number):
        body = {"training_data": [f"{index}: {text}" for text in CORPUS] * 10, "epochs": 3, "learning_rate": 0.001}
        headers = {"Prefer": "respond-async", "Idempotency-Key": f"job-{index}"}
        jobs.append(until_accepted(client, "/v1/aitextgen/finetune", body, **headers)["job_id"])
    return jobs


@pytest.mark.timeout(3600)
def test_every_job_ends_once_and_every_subscriber_hears_of_it(
    service: Service, postgresql: PostgreSQLServer, s3: SeaweedFS
) -> None:
    url = service.variables["TRITEXT_DATABASE_URL"]
    with (
        subscribed(refuses=0.3, seed=SEED) as first,
        subscribed() as second,
        Chaos(service, postgresql, s3, SEED) as chaos,
        httpx.Client(base_url=service.url, headers=service.headers, timeout=30) as client,
    ):
        for subscriber in (first, second):
            body = {"url": subscriber.url, "events": list(EVENTS)}
            until_accepted(client, "/v1/aitextgen/webhooks/create", body, **{"Idempotency-Key": subscriber.url})
        jobs = start_jobs(client, NUM_JOBS)
        [cancelled] = random.Random(SEED).sample(jobs, 1)
        until_cancelled(client, cancelled)
        wait_until(lambda: chaos.is_over or num_open(url) == 0, timeout_s=60 * NUM_BLOWS, what="there was chaos enough")
        chaos.stop()
        wait_until(lambda: num_open(url) == 0, timeout_s=300 + 60 * NUM_JOBS, what="all jobs have ended")
        wait_until(lambda: not pending_deliveries(url), timeout_s=120, what="every webhook is delivered")

        stored = {row["id"]: row for row in rows(url, "SELECT * FROM jobs")}
        ended = Counter(row["status"] for row in stored.values())
        print({"jobs": NUM_JOBS, "blows": dict(chaos.done), "ended": ended})  # noqa: T201  # shown by `pytest -s`
        assert sorted(stored) == sorted(jobs)
        assert stored[cancelled]["status"] in ("cancelled", "succeeded")
        assert all(row["status"] == "succeeded" for job_id, row in stored.items() if job_id != cancelled)
        check_ends(url, jobs)
        models = {row["job"]: row for row in rows(url, "SELECT * FROM tuned_models")}
        assert sorted(models) == sorted(job for job in jobs if stored[job]["status"] == "succeeded")
        for subscriber in (first, second):
            check_webhooks(subscriber, stored)
        wait_until(lambda: can_generate(service), timeout_s=240, what="the generator is there again")
        for model in models.values():
            answer = client.post("/v1/completions", json={"model": model["id"], "prompt": "The", "max_tokens": 4})
            assert answer.status_code == 200, answer.text


def until_cancelled(client: httpx.Client, job_id: str) -> None:
    """A job that has ended meanwhile refuses, which is as good."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if client.post(f"/v1/aitextgen/finetune/{job_id}/cancel").status_code in (200, 400):
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError("the job could not be cancelled within 60 s")


def can_generate(service: Service) -> bool:
    """Asks for the process first: that a killed one is gone, `serve status` learns later."""
    name = f"Generator-{MODEL}"
    return bool(service.replicas(name)) and name in service.healthy_deployments()


def num_open(url: str) -> int:
    try:
        return int(rows(url, "SELECT count(*) AS number FROM jobs WHERE finished_at IS NULL")[0]["number"])
    except psycopg.OperationalError:  # it has just been killed
        return NUM_JOBS


def pending_deliveries(url: str) -> bool:
    return bool(rows(url, "SELECT id FROM webhook_deliveries WHERE status = 'pending'"))


def check_ends(url: str, jobs: Sequence[str]) -> None:
    """No job's history tells of two ends."""
    ends: dict[str, list[str]] = defaultdict(list)
    for row in rows(url, "SELECT job, message FROM job_events ORDER BY id"):
        if row["message"].startswith(("The job has successfully", "The job failed", "The job was cancelled")):
            ends[row["job"]].append(row["message"])
    assert {job: len(messages) for job, messages in ends.items()} == dict.fromkeys(jobs, 1)


def check_webhooks(subscriber: Subscriber, stored: dict[str, dict[str, Any]]) -> None:
    """One event of each job, under one id however often it came, that says how the job ended."""
    events: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for delivery in subscriber.deliveries:
        if delivery.accepted:
            events[delivery.event["data"]["job_id"]].add((delivery.headers["webhook-id"], delivery.event["type"]))
    assert sorted(events) == sorted(stored)
    types = {"succeeded": "finetune.completed", "failed": "finetune.failed", "cancelled": "finetune.cancelled"}
    for job_id, told in events.items():
        [(_, type_)] = told
        assert type_ == types[stored[job_id]["status"]]
