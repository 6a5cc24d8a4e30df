"""On a Ray cluster of several nodes the ingress refuses SQLite; on one node it does not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import asyncio, ray
from ray.cluster_utils import Cluster
from serve_app.config import AppConfig, SetupError
from serve_app.ingress import Ingress, num_nodes

def start():
    config = AppConfig.model_validate({"graph": {"models": [{"id": "test-model", "source": "/nowhere"}]}})
    ingress = Ingress.__new__(Ingress)
    async def run():
        try:
            await Ingress.__init__(ingress, config, None, {}, None)
        finally:
            await ingress.__del__()
    try:
        asyncio.run(run())
    except SetupError as error:
        print("refused:", error)
    except Exception as error:  # the graph is not there, and the database was accepted
        print("went on:", type(error).__name__)
    else:
        print("went on")

size = {"num_cpus": 1, "object_store_memory": 100_000_000}
cluster = Cluster(initialize_head=True, head_node_args=size)
ray.init(address=cluster.address, log_to_driver=False)
print(num_nodes())
start()
node = cluster.add_node(**size)
cluster.wait_for_nodes()
print(num_nodes())
start()
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.timeout(180)
def test_the_ingress_counts_the_nodes_of_ray_and_refuses_sqlite_on_several(home: Path) -> None:
    environment = {
        **os.environ,
        "TRITEXT_KEY_PEPPER": "p" * 32,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",  # lets a test have two nodes on this machine
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    said = [line for line in done.stdout.splitlines() if line.startswith(("1", "2", "refused", "went"))]
    assert len(said) == 4, done.stdout + done.stderr
    assert said[0] == "1"
    assert said[1].startswith("went on")
    assert said[2] == "2"
    assert said[3].startswith("refused: the cluster has 2 nodes")
    assert (home / "tritext.db").exists()
