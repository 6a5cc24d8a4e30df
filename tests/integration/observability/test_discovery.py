"""Prometheus on the head of a Ray cluster: it finds the machines that Ray names, and tells of one that says nothing."""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.integration.service import wait_until
from tests.prometheus import Prometheus, running_prometheus


class Measurements(BaseHTTPRequestHandler):
    """What the agent of a machine gives, of which one series is enough here."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(b'ray_tritext_jobs{status="queued"} 0\n')

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def agent() -> Iterator[str]:
    """Its host and port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Measurements) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def machines() -> Iterator[dict[str, ExitStack]]:
    """Two, by where their agents answer; they are lost by closing them."""
    with ExitStack() as resources:
        found = {}
        for _ in range(2):
            machine = resources.enter_context(ExitStack())
            found[machine.enter_context(agent())] = machine
        yield found


@pytest.fixture
def prometheus(machines: dict[str, ExitStack], tmp_path: Path) -> Iterator[Prometheus]:
    discovery = tmp_path / "discovery.json"
    discovery.write_text(json.dumps([{"labels": {"job": "ray"}, "targets": list(machines)}]))  # as Ray writes it
    found_by = {"file_sd_configs": [{"files": [str(discovery)]}]}
    with running_prometheus(tmp_path, "prometheus_cluster.yaml", found_by) as prometheus:
        yield prometheus


def test_a_lost_agent_is_told_and_nobody_else_is_missed(prometheus: Prometheus, machines: dict[str, ExitStack]) -> None:
    def up() -> dict[str, float]:
        return {labels["instance"]: value for labels, value in prometheus.query('up{job="tritext"}')}

    def missed() -> list[str | None]:
        """Those for whom the alarm is about to be raised."""
        [group] = prometheus.ask("rules")["groups"]
        [rule] = [each for each in group["rules"] if each["name"] == "TritextUnmeasured"]
        return [alert["labels"].get("instance") for alert in rule["alerts"]]

    wait_until(lambda: up() == dict.fromkeys(machines, 1), timeout_s=30, what="all machines are measured")
    asked = {target["labels"]["instance"] for target in prometheus.ask("targets")["activeTargets"]}
    assert asked == machines.keys()
    wait_until(lambda: missed() == [], timeout_s=30, what="no machine is missed")

    lost, _ = machines
    machines[lost].close()
    wait_until(lambda: missed() == [lost], timeout_s=30, what="the lost one is missed")
