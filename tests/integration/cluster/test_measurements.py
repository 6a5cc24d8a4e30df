"""Prometheus on the head of a cluster: whom Ray names there, and that all of them answer."""

import json
import os
from pathlib import Path

import pytest
import yaml

from infra.generate import OBSERVABILITY
from infra.haproxy import PORTS
from tests.integration.cluster.machines import cluster
from tests.integration.service import wait_until
from tests.prometheus import running_prometheus

pytestmark = pytest.mark.timeout(600)

CONFIG = "prometheus_cluster.yaml"


def test_prometheus_on_the_head_measures_every_machine(tmp_path: Path) -> None:
    [job] = yaml.safe_load((OBSERVABILITY / CONFIG).read_text("utf-8"))["scrape_configs"]
    [written_by_ray] = job["file_sd_configs"][0]["files"]
    copied = tmp_path / "discovery.json"
    found_by = {"file_sd_configs": [{"files": [str(copied)], "refresh_interval": "1s"}]}
    with cluster({}, ["--include-dashboard=true"]) as started:
        machines = (started.head, started.add("serving", num_cpus=1, kinds=["serving"]))
        agents = {f"{machine.address}:{PORTS.measurements}" for machine in machines}

        def named() -> set[str]:
            """Whom Ray names by now; it is copied to where Prometheus of this test finds it."""
            text = started.head.run("sh", "-c", f"cat {written_by_ray} || echo []")
            unfinished = tmp_path / "unfinished"
            unfinished.write_text(text)
            os.replace(unfinished, copied)
            return {target for group in json.loads(text) for target in group["targets"]}

        wait_until(lambda: agents <= named(), timeout_s=120, what="Ray names the machines")
        with running_prometheus(tmp_path, CONFIG, found_by) as prometheus:

            def up() -> dict[str, float]:
                return {labels["instance"]: value for labels, value in prometheus.query('up{job="tritext"}')}

            wait_until(lambda: up() == dict.fromkeys(named(), 1), timeout_s=120, what="all that Ray names are measured")
