"""A cluster as its operator sees it: `python -m tests.integration.cluster.console` on one of its machines.

The first line that it reads is a Serve configuration to be deployed, as JSON, or empty. Then, for each line, it prints
what the cluster says of itself, as one line of JSON: see `View`.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.integration.cluster.machines import Machine


@dataclass(frozen=True)
class View:
    """nodes: resources of those that live, by address, or by kind where several have one address. deployments: their
    status. replicas: where those that run are, by deployment."""

    nodes: Sequence[tuple[str, Mapping[str, float]]]
    deployments: Mapping[str, str]
    replicas: Mapping[str, Sequence[str]]

    @property
    def is_whole(self) -> bool:
        return bool(self.deployments) and set(self.deployments.values()) == {"HEALTHY"}

    def replicas_at(self, address: str) -> Counter[str]:
        """How many of each deployment are there."""
        return Counter(name for name, places in self.replicas.items() for place in places if place == address)

    def with_resource(self, name: str) -> int:
        """How many nodes offer it."""
        return sum(name in resources for _, resources in self.nodes)


class Console:
    """Is to be closed before its machine ends."""

    def __init__(self, machine: Machine, document: Mapping[str, Any] | None = None) -> None:
        command = machine.command(sys.executable, "-m", "tests.integration.cluster.console")
        self._process = subprocess.Popen(
            command, env=machine.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._say(json.dumps(document) if document else "")

    def look(self) -> View:
        self._say("")
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the console has ended"
        return View(**json.loads(line))

    def close(self) -> None:
        with self._process:  # closes its standard input, and waits for its end
            pass

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


def deploy_patiently(document: Mapping[str, Any]) -> None:
    """Again, where Serve's proxies did not start within its minute: all machines share a few cores."""
    from serve_app.config import SetupError
    from serve_app.launcher.cluster import deploy

    for _ in range(3):
        try:
            return deploy(document)
        except SetupError as error:
            sys.stderr.write(f"{error}\n")
    deploy(document)


def main() -> None:
    import ray
    from ray.serve.context import _get_global_client

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray prints, too
    ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    if line := sys.stdin.readline().strip():
        deploy_patiently(json.loads(line))
    for _ in sys.stdin:
        nodes = [(node["NodeManagerAddress"], node["Resources"]) for node in ray.nodes() if node["Alive"]]
        details = _get_global_client().get_serve_details()
        deployments = {
            name: deployment
            for application in details["applications"].values()
            for name, deployment in application["deployments"].items()
        }
        replicas = {
            name: [replica["node_ip"] for replica in deployment["replicas"] if replica["state"] == "RUNNING"]
            for name, deployment in deployments.items()
        }
        view = View(nodes, {name: each["status"] for name, each in deployments.items()}, replicas)
        answers.write(json.dumps(asdict(view)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
