"""Machines of a cluster are lost under load: the graph of infra/serve/cluster.yaml is spread over several of them."""

import asyncio
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.rows import dict_row

from tests.chaos.seeded import Answer, body, stream, whole
from tests.databases import PostgreSQLServer
from tests.factories import make_tiny_model
from tests.integration.cluster.console import Console, View
from tests.integration.cluster.machines import Cluster, Machine, cluster
from tests.integration.cluster.service import MODEL, cluster_document, deployment, new_key
from tests.integration.service import wait_until

pytestmark = pytest.mark.timeout(900)

GENERATOR = f"Generator-{MODEL}"
NUM_CLIENTS = 12
NUM_REQUESTS = 40
"""Different ones, which clients send again and again."""
MACHINES: Mapping[str, Mapping[str, Any]] = {
    "serving": {"num_cpus": 4, "kinds": ("serving", "dispatching")},
    "both": {"num_cpus": 16, "num_gpus": 3, "kinds": ("serving", "dispatching", "generating")},
    "generating": {"num_cpus": 12, "num_gpus": 3, "kinds": ("generating",)},
    "vanishing": {"num_cpus": 12, "num_gpus": 3, "kinds": ("generating",)},
}
"""By name; the CPUs and GPUs are such that all replicas of the others find room on the one that is left."""


@dataclass
class Service:
    """The service of infra/serve/cluster.yaml, with three generators. undisturbed: what each request is answered."""

    cluster: Cluster
    database_url: str
    key: str
    machines: dict[str, Machine] = field(default_factory=dict)
    undisturbed: dict[int, Answer] = field(default_factory=dict)
    console: Console = field(init=False)

    def add(self, name: str) -> None:
        self.machines[name] = self.cluster.add(name, **MACHINES[name])

    def lose(self, name: str) -> Machine:
        """At once, with all that is on it."""
        lost = self.machines.pop(name)
        lost.kill()
        return lost

    def proxy(self, name: str) -> str:
        return f"http://{self.machines[name].address}:8000"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def wait_whole(self, is_so: Callable[[View], bool] = lambda _: True) -> None:
        wait_until(
            lambda: (view := self.console.look()).is_whole and is_so(view) and self._is_ready(),
            timeout_s=300,
            what="the graph is whole",
        )

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.proxy('serving')}/ready", timeout=10).status_code == 200
        except httpx.TransportError:
            return False


def asked(number: int) -> dict[str, Any]:
    """Without log-probabilities: in float32 on torch their last digits depend on what else is in a step."""
    return body(number, MODEL) | {"logprobs": None}


class Load:
    """Clients of one proxy, for as long as the context lasts: streams and whole answers by turns.

    answers: what each request was told, by its id. failures: what came of the others; clients repeat nothing.
    """

    def __init__(self, service: Service, proxy: str, run: str) -> None:
        self.answers: dict[str, tuple[int, Answer]] = {}
        self.failures: dict[str, Exception] = {}
        self._service = service
        self._proxy = proxy
        self._run = run
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._send()))

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join(150)
        assert not self._thread.is_alive(), "requests are not answered"

    def wait_answers(self, number: int) -> None:
        """Returns when so many more have come."""
        before = len(self.answers)
        wait_until(lambda: len(self.answers) >= before + number, timeout_s=120, what=f"{number} more answers")

    async def _send(self) -> None:
        async with httpx.AsyncClient(base_url=self._proxy, headers=self._service.headers, timeout=120) as client:
            await asyncio.gather(*(self._send_requests(client, worker) for worker in range(NUM_CLIENTS)))

    async def _send_requests(self, client: httpx.AsyncClient, worker: int) -> None:
        number = worker
        while not self._is_over.is_set():
            request_id = f"{self._run}-{worker}-{number}"
            ask = whole if number % 4 == 0 else stream
            try:
                answer = await ask(client, asked(number % NUM_REQUESTS), request_id)
                self.answers[request_id] = (number % NUM_REQUESTS, answer)
            except (httpx.HTTPError, AssertionError) as error:
                self.failures[request_id] = error
                await asyncio.sleep(0.2)
            number += NUM_CLIENTS


@pytest.fixture(scope="module")
def service(postgresql_server: PostgreSQLServer, postgresql_template: str) -> Iterator[Service]:
    database_url = postgresql_server.url_of(postgresql_server.create_database(template=postgresql_template))
    with ExitStack() as resources:
        directory = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="tritext-nodes-")))
        document = cluster_document(make_tiny_model(directory / "model"), directory / "objects")
        deployment(document, GENERATOR)["autoscaling_config"]["min_replicas"] = 3
        variables = {"TRITEXT_DATABASE_URL": database_url, "TRITEXT_KEY_PEPPER": token_hex(32)}
        made = Service(
            resources.enter_context(cluster(variables)), database_url, new_key(document, directory, variables)
        )
        for machine in MACHINES:
            made.add(machine)
        made.console = Console(made.cluster.head, document)
        resources.callback(made.console.close)
        made.wait_whole()
        made.undisturbed = asyncio.run(answers_of(made))
        yield made


async def answers_of(service: Service) -> dict[int, Answer]:
    async with httpx.AsyncClient(base_url=service.proxy("serving"), headers=service.headers, timeout=120) as client:
        numbers = range(NUM_REQUESTS)
        answers = await asyncio.gather(*(stream(client, asked(number), f"undisturbed-{number}") for number in numbers))
    return dict(zip(numbers, answers, strict=True))


def ledger(service: Service, run: str) -> dict[str, list[dict[str, Any]]]:
    """The lines of a run by request, once all are settled."""
    with psycopg.connect(service.database_url, autocommit=True, row_factory=dict_row) as connection:

        def lines(which: str) -> list[dict[str, Any]]:
            return connection.execute(f"SELECT * FROM ledger WHERE {which}".encode()).fetchall()  # noqa: S608

        wait_until(lambda: not lines("settled_at IS NULL"), timeout_s=120, what="no reservation is open")
        found = defaultdict(list)
        for line in lines(f"id LIKE '{run}-%'"):
            found[line["id"].partition(".")[0]].append(line)
    return found


def check_answers(service: Service, load: Load, run: str) -> None:
    """Each is the one that it would have been, and is what was paid for."""
    lines = ledger(service, run)
    for request_id, (number, answer) in load.answers.items():
        assert answer == service.undisturbed[number], request_id
        [line] = (line for line in lines.pop(request_id) if line["outcome"] == "completed")
        assert (line["prompt_tokens"], line["completion_tokens"]) == answer.usage
    assert set(lines) <= set(load.failures)


def test_the_graph_is_spread_over_machines_of_its_kinds(service: Service) -> None:
    view = service.console.look()
    serving, both, *generating = (view.replicas_at(service.machines[name].address) for name in MACHINES)
    assert serving == {"Ingress": 1, "Tokenizer": 1, "Dispatcher": 1}
    assert both == {"Ingress": 1, "Tokenizer": 1, "Dispatcher": 1, GENERATOR: 1}
    assert generating == [{GENERATOR: 1}] * 2
    assert not view.replicas_at(service.cluster.head.address)


def test_no_client_notices_that_a_machine_with_a_generator_is_lost(service: Service) -> None:
    with Load(service, service.proxy("serving"), "generating") as load:
        load.wait_answers(2 * NUM_CLIENTS)
        lost = service.lose("generating")
        load.wait_answers(4 * NUM_CLIENTS)
        service.wait_whole(lambda view: lost.address not in view.replicas[GENERATOR])
        load.wait_answers(2 * NUM_CLIENTS)
    assert load.failures == {}
    check_answers(service, load, "generating")


def test_no_client_notices_that_a_machine_with_a_generator_vanishes(service: Service) -> None:
    """Without a word: Ray takes a minute or more to learn of it, and meanwhile gives it requests."""
    with Load(service, service.proxy("serving"), "vanishing") as load:
        load.wait_answers(2 * NUM_CLIENTS)
        lost = service.machines["vanishing"]
        lost.cut_off()
        load.wait_answers(4 * NUM_CLIENTS)
        service.wait_whole(lambda view: lost.address not in view.replicas[GENERATOR])
        load.wait_answers(2 * NUM_CLIENTS)
    service.lose("vanishing")
    assert load.failures == {}
    check_answers(service, load, "vanishing")


def test_a_machine_with_everything_is_lost(service: Service) -> None:
    """Clients of the other machine's proxy: connections break over what the lost ingress worked on, and no part of an
    answer looks like a whole one. All else is answered."""
    service.add("generating")
    with Load(service, service.proxy("serving"), "both") as load:
        load.wait_answers(2 * NUM_CLIENTS)
        service.lose("both")
        load.wait_answers(4 * NUM_CLIENTS)
        num_failures = len(load.failures)
        service.add("both")
        service.wait_whole(lambda view: len(view.replicas["Ingress"]) == 2)
        load.wait_answers(2 * NUM_CLIENTS)
    assert len(load.failures) == num_failures <= NUM_CLIENTS
    # An HTTP message that does not end, or none at all.
    assert {type(error) for error in load.failures.values()} <= {httpx.RemoteProtocolError}
    check_answers(service, load, "both")
