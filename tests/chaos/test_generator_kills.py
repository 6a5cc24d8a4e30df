"""Generator replicas killed under streams: every client gets the text that it would have got, and pays for that."""

import asyncio
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import yaml
from psycopg.rows import dict_row

from tests.chaos.seeded import Answer, body, stream
from tests.integration.service import GENERATOR, LOCAL_CONFIG, MODEL, Service, running, wait_until

SEED = int(os.environ.get("TRITEXT_CHAOS_SEED", "1"))
NUM_STREAMS = int(os.environ.get("TRITEXT_CHAOS_STREAMS", "60"))
NUM_CLIENTS = 12


@pytest.fixture
def service(new_home: Callable[[], Path], postgresql_url: str, tmp_path: Path) -> Iterator[Service]:
    """Two generator replicas, over PostgreSQL."""
    document = yaml.safe_load(LOCAL_CONFIG.read_text())
    [application] = document["applications"]
    application["args"]["database_url"] = postgresql_url
    for deployment in application["deployments"]:
        if deployment["name"] == GENERATOR:
            del deployment["autoscaling_config"]
            deployment |= {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.5}}
    config = tmp_path / "two.yaml"
    config.write_text(yaml.safe_dump(document))
    with running(new_home(), "throughput", config=config) as service:
        yield service


async def ask_all(service: Service, run: str) -> dict[int, Answer]:
    numbers = iter(range(NUM_STREAMS))
    answers: dict[int, Answer] = {}
    async with httpx.AsyncClient(base_url=service.url, headers=service.headers, timeout=180) as client:

        async def work() -> None:
            for number in numbers:
                answers[number] = await stream(client, body(number, MODEL), f"{run}-{number}")

        await asyncio.gather(*(work() for _ in range(NUM_CLIENTS)))
    return answers


def kill_until(service: Service, is_over: threading.Event, seed: int) -> int:
    """Kills one of the two replicas every few seconds, also while the other is the only one; returns how often."""
    choice = random.Random(seed)
    num_kills = 0
    while not is_over.wait(choice.uniform(2, 5)):
        if replicas := service.replicas(GENERATOR):
            choice.choice(replicas).kill()
            num_kills += 1
    return num_kills


@pytest.mark.timeout(900)
def test_every_stream_is_what_it_would_have_been(service: Service, postgresql_url: str) -> None:
    undisturbed = asyncio.run(ask_all(service, "undisturbed"))
    is_over = threading.Event()
    kills: list[int] = []
    killer = threading.Thread(target=lambda: kills.append(kill_until(service, is_over, SEED)))
    killer.start()
    try:
        disturbed = asyncio.run(ask_all(service, "disturbed"))
    finally:
        is_over.set()
        killer.join(30)
    print({"streams": NUM_STREAMS, "kills": kills})  # noqa: T201  # shown when the test fails, or by `pytest -s`
    assert kills[0] >= 2
    assert disturbed == undisturbed

    with psycopg.connect(postgresql_url, autocommit=True, row_factory=dict_row) as connection:

        def open_lines() -> list[Any]:
            return connection.execute("SELECT id FROM ledger WHERE settled_at IS NULL").fetchall()

        wait_until(lambda: not open_lines(), timeout_s=30, what="no reservation is open")
        lines = connection.execute("SELECT * FROM ledger").fetchall()
    assert len(lines) == 2 * NUM_STREAMS
    for line in lines:
        run, number = line["id"].partition(".")[0].split("-")
        answers = undisturbed if run == "undisturbed" else disturbed
        assert (line["prompt_tokens"], line["completion_tokens"]) == answers[int(number)].usage
        assert line["outcome"] == "completed"
