"""Generator replicas killed under streams: every client gets the text that it would have got, and pays for that."""

import asyncio
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count, takewhile
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
import psycopg
import pytest
import yaml
from psycopg.rows import dict_row

from tests.chaos.seeded import Answer, body, stream
from tests.integration.service import GENERATOR, LOCAL_CONFIG, MODEL, Service, running, wait_until

SEED = int(os.environ.get("TRITEXT_CHAOS_SEED", "1"))
NUM_STREAMS = int(os.environ.get("TRITEXT_CHAOS_STREAMS", "60"))
NUM_CLIENTS = 12
NUM_KILLS = 2
"""As many at least."""
MOST_LOSSES = 3
"""So many kills one stream sees at most: the service gives up an answer that has lost too many replicas."""


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


class Killer:
    """Kills one of the two replicas every few seconds, also while the other is the only one, for as long as the context
    lasts. It waits where the streams have received nothing since the last kill, or one could lose too many replicas."""

    def __init__(self, service: Service, seed: int) -> None:
        self.num_kills = 0
        self._service = service
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._is_heard = False
        self._losses: dict[str, int] = {}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join(30)

    @contextmanager
    def watching(self, request_id: str) -> Iterator[None]:
        """A stream is open for as long as this context lasts."""
        with self._lock:
            self._losses[request_id] = 0
        try:
            yield
        finally:
            with self._lock:
                del self._losses[request_id]

    def heard(self) -> None:
        self._is_heard = True

    def _run(self) -> None:
        while not self._is_over.wait(self._random.uniform(2, 5)):
            while not (self._may_kill() and self._kill()):
                if self._is_over.wait(0.1):
                    return

    def _may_kill(self) -> bool:
        with self._lock:
            return self._is_heard and max(self._losses.values(), default=MOST_LOSSES) < MOST_LOSSES

    def _kill(self) -> bool:
        replicas = self._service.replicas(GENERATOR)
        if not replicas:
            return False
        with self._lock:
            try:
                self._random.choice(replicas).kill()
            except psutil.NoSuchProcess:  # it has ended by itself meanwhile
                return False
            self.num_kills += 1
            self._is_heard = False
            self._losses = {request_id: number + 1 for request_id, number in self._losses.items()}
        return True


async def ask_all(service: Service, run: str, killer: Killer | None = None) -> list[tuple[int, Answer]]:
    """Each of the numbered requests once, or again and again until there were enough kills; with their numbers."""
    answers: list[tuple[int, Answer]] = []

    def places() -> Iterator[int]:
        yield from range(NUM_STREAMS)
        if killer is not None:
            yield from takewhile(lambda _: killer.num_kills < NUM_KILLS, count(NUM_STREAMS))

    async with httpx.AsyncClient(base_url=service.url, headers=service.headers, timeout=180) as client:

        async def work() -> None:
            for place in left:
                number, request_id = place % NUM_STREAMS, f"{run}-{place}"
                if killer is None:
                    answer = await stream(client, body(number, MODEL), request_id)
                else:
                    with killer.watching(request_id):
                        answer = await stream(client, body(number, MODEL), request_id, heard=killer.heard)
                answers.append((number, answer))

        left = places()
        await asyncio.gather(*(work() for _ in range(NUM_CLIENTS)))
    return answers


@pytest.mark.timeout(900)
def test_every_stream_is_what_it_would_have_been(service: Service, postgresql_url: str) -> None:
    undisturbed = dict(asyncio.run(ask_all(service, "undisturbed")))
    with Killer(service, SEED) as killer:
        disturbed = asyncio.run(ask_all(service, "disturbed", killer))
    # Shown when the test fails, or by `pytest -s`.
    print({"streams": len(disturbed), "kills": killer.num_kills})  # noqa: T201
    assert killer.num_kills >= NUM_KILLS and {number for number, _ in disturbed} == set(undisturbed)
    for number, answer in disturbed:
        assert answer == undisturbed[number]

    with psycopg.connect(postgresql_url, autocommit=True, row_factory=dict_row) as connection:

        def open_lines() -> list[Any]:
            return connection.execute("SELECT id FROM ledger WHERE settled_at IS NULL").fetchall()

        wait_until(lambda: not open_lines(), timeout_s=30, what="no reservation is open")
        lines = connection.execute("SELECT * FROM ledger").fetchall()
    assert len(lines) == NUM_STREAMS + len(disturbed)
    for line in lines:
        place = int(line["id"].partition(".")[0].split("-")[1])
        assert (line["prompt_tokens"], line["completion_tokens"]) == undisturbed[place % NUM_STREAMS].usage
        assert line["outcome"] == "completed"
