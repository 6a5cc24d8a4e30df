"""Ray's autoscaler over the kinds of machines of infra/ray/aws.yaml, where machines are nodes of one machine;
and Serve's, which brings the replicas that ask for them.

Ray's own class for this, AutoscalingCluster, begins by ending every Ray of the machine.
"""

import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

import httpx
import pytest
import yaml

from tests.databases import PostgreSQLServer
from tests.factories import CORPUS, make_tiny_model
from tests.integration.cluster.console import Console, View
from tests.integration.cluster.machines import ROOT, cluster
from tests.integration.cluster.service import MODEL, SLEEPING_MODEL, cluster_document, deployment, new_key
from tests.integration.service import wait_until

pytestmark = pytest.mark.timeout(900)

AWS = ROOT / "infra/ray/aws.yaml"
HEAD = "ray.head.default"  # the name that the fake provider takes for granted
GENERATOR = f"Generator-{SLEEPING_MODEL}"
BUSY_GENERATOR = f"Generator-{MODEL}"
IDLE_S = 6
"""How long a machine without work stays."""
NUM_CLIENTS = 8


def autoscaling_config() -> dict[str, Any]:
    """infra/ray/aws.yaml with another provider; of the machines that always run, one of each kind."""
    aws = yaml.safe_load(AWS.read_text("utf-8"))
    kinds = {
        name: {
            "resources": kind["resources"],
            "node_config": {},
            "min_workers": min(kind.get("min_workers", 0), 1),
            "max_workers": kind["max_workers"],
        }
        for name, kind in aws["available_node_types"].items()
        if name != aws["head_node_type"]
    }
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    return {
        "cluster_name": aws["cluster_name"],
        "max_workers": aws["max_workers"],
        "upscaling_speed": aws["upscaling_speed"],
        "idle_timeout_minutes": IDLE_S / 60,
        "provider": {
            "type": "fake_multinode",
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "use_node_id_as_ip": True,  # all nodes have one address
        },
        "available_node_types": {**kinds, HEAD: head},
        "head_node_type": HEAD,
        # What Ray fills in for other providers.
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "cluster_synced_files": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
        "rsync_exclude": [],
        "rsync_filter": [],
    }


def document_of(model: Path, objects: Path) -> dict[str, Any]:
    """infra/serve/cluster.yaml, one replica of each but no generator: both models sleep, and soon again.

    One of them computes one text at a time, and has as many replicas as the tokens of prompts ask for that wait there:
    neither sequences nor its cache ask for a second one.
    """
    document = cluster_document(model, objects)
    document["proxy_location"] = "HeadOnly"  # nodes of one machine have the same ports
    for name in ("Ingress", "Tokenizer"):
        deployment(document, name)["autoscaling_config"]["min_replicas"] = 1
    deployment(document, "Dispatcher")["num_replicas"] = 1
    for name in (BUSY_GENERATOR, GENERATOR):
        deployment(document, name)["autoscaling_config"] |= {
            "min_replicas": 0,
            "look_back_period_s": 3,
            "downscale_delay_s": 3,
            "downscale_to_zero_delay_s": 3,
        }
    [busy] = [each for each in graph_of(document)["models"] if each["id"] == MODEL]
    busy["engine"]["max_num_seqs"] = 1
    scaling = deployment(document, BUSY_GENERATOR)["autoscaling_config"]
    scaling["max_replicas"] = 2
    scaling["policy"]["policy_kwargs"] = {
        "target_sequences": 1e6,
        "target_pending_tokens": 100,
        "target_cache_use": 1e6,
    }
    deployment(document, "Ingress")["autoscaling_config"] |= {
        "target_ongoing_requests": NUM_CLIENTS / 2,
        "metrics_interval_s": 1,
        "look_back_period_s": 3,
        "upscale_delay_s": 3,
    }
    return document


def graph_of(document: dict[str, Any]) -> dict[str, Any]:
    [application] = document["applications"]
    graph: dict[str, Any] = application["args"]["graph"]
    return graph


class Watch:
    """Looks at the cluster again and again, and remembers all that it saw."""

    def __init__(self, console: Console) -> None:
        self.views: list[View] = []
        self._console = console
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    @property
    def now(self) -> View:
        return self.views[-1]

    def wait(self, condition: Callable[[View], bool], *, timeout_s: float, what: str) -> None:
        def holds() -> bool:
            assert self._thread.is_alive(), "the console has ended"
            return bool(self.views) and condition(self.now)

        wait_until(holds, timeout_s=timeout_s, what=what)

    def most(self, count: Callable[[View], int]) -> int:
        return max(map(count, self.views))

    def _look(self) -> None:
        while not self._is_over.wait(0.5):
            self.views.append(self._console.look())

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join(60)


@pytest.fixture(scope="module")
def service(postgresql_server: PostgreSQLServer, postgresql_template: str) -> Iterator[tuple[Watch, httpx.Client]]:
    database_url = postgresql_server.url_of(postgresql_server.create_database(template=postgresql_template))
    with ExitStack() as resources:
        directory = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="tritext-nodes-")))
        document = document_of(make_tiny_model(directory / "model"), directory / "objects")
        variables = {
            "TRITEXT_DATABASE_URL": database_url,
            "TRITEXT_KEY_PEPPER": token_hex(32),
            "RAY_FAKE_CLUSTER": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            # HAProxy's files and ports are once on each machine.
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0",
            "RAY_SERVE_ENABLE_HA_PROXY": "0",
        }
        config = directory / "autoscaling.yaml"
        config.write_text(yaml.safe_dump(autoscaling_config()))
        started = resources.enter_context(cluster(variables, [f"--autoscaling-config={config}"]))
        console = Console(started.head, document)
        resources.callback(console.close)
        watch = Watch(console)
        resources.callback(watch.stop)
        key = new_key(document, directory, variables)
        client = httpx.Client(
            base_url=f"http://{started.head.address}:8000", headers={"Authorization": f"Bearer {key}"}, timeout=300
        )
        resources.enter_context(client)
        watch.wait(lambda view: view.is_whole, timeout_s=300, what="the graph is whole")
        yield watch, client


@contextmanager
def load(client: httpx.Client) -> Iterator[None]:
    """Several who ask the busy model, each as soon as it was answered, for as long as the context lasts."""
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            answer = client.post("/v1/completions", json={"model": MODEL, "prompt": "x" * 200, "max_tokens": 100})
            assert answer.status_code == 200, answer.text

    with ThreadPoolExecutor(NUM_CLIENTS) as executor:
        asking = [executor.submit(ask) for _ in range(NUM_CLIENTS)]
        try:
            yield
        finally:
            is_over.set()
    for each in asking:
        each.result()


def num_generating(view: View) -> int:
    return view.with_resource("generating")


def num_training(view: View) -> int:
    return view.with_resource("training")


def test_asleep_the_graph_has_no_machine_with_a_gpu(service: tuple[Watch, httpx.Client]) -> None:
    watch, client = service
    wait_until(lambda: client.get("/ready").status_code == 200, timeout_s=60, what="ready")
    assert watch.most(num_generating) == watch.most(num_training) == 0
    assert watch.now.with_resource("serving") == watch.now.with_resource("dispatching") == 1


def test_a_request_for_a_sleeping_model_brings_a_machine_that_goes_again(
    service: tuple[Watch, httpx.Client],
) -> None:
    watch, client = service
    answer = client.post("/v1/completions", json={"model": SLEEPING_MODEL, "prompt": "The", "max_tokens": 4})
    assert answer.status_code == 200, answer.text
    assert watch.most(num_generating) == 1
    watch.wait(lambda view: not view.replicas[GENERATOR], timeout_s=120, what="the model sleeps")
    watch.wait(lambda view: num_generating(view) == 0, timeout_s=120, what="its machine is gone")
    assert watch.now.is_whole
    assert watch.most(num_training) == 0


def test_a_job_brings_a_machine_that_goes_again(service: tuple[Watch, httpx.Client]) -> None:
    watch, client = service
    body = {"training_data": list(CORPUS) * 10, "epochs": 1, "model": SLEEPING_MODEL}
    answer = client.post("/v1/aitextgen/finetune", json=body)
    assert answer.status_code == 200, answer.text
    assert watch.most(num_training) == 1
    watch.wait(lambda view: num_training(view) == 0, timeout_s=120, what="its machine is gone")
    assert watch.now.is_whole
    assert num_generating(watch.now) == 0


def test_prompts_that_wait_bring_a_second_generator_and_its_machine_and_requests_a_second_ingress(
    service: tuple[Watch, httpx.Client],
) -> None:
    watch, client = service
    assert watch.most(lambda view: len(view.replicas.get("Ingress", ()))) == 1
    with load(client):
        watch.wait(lambda view: len(view.replicas["Ingress"]) == 2, timeout_s=180, what="two ingresses")
        watch.wait(lambda view: len(view.replicas[BUSY_GENERATOR]) == 2, timeout_s=180, what="two generators")
        assert num_generating(watch.now) == 2
    watch.wait(lambda view: not view.replicas[BUSY_GENERATOR], timeout_s=120, what="the model sleeps")
    watch.wait(lambda view: num_generating(view) == 0, timeout_s=120, what="the machines are gone")
    assert watch.now.is_whole
