"""A real Prometheus for tests, with the service's own configuration but for where it finds whom to ask."""

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from infra.generate import ALERTS, OBSERVABILITY
from tests.integration.service import free_port, wait_until


class Prometheus:
    """`url` answers as Prometheus does."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, **parameters: str) -> Any:
        response = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30)
        assert response.status_code == 200, f"{parameters}: {response.text}"
        return response.json()["data"]

    def query(self, query: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of every series that the query has now."""
        return [(found["metric"], float(found["value"][1])) for found in self.ask("query", query=query)["result"]]

    def value(self, query: str) -> float | None:
        """The only value, or None where there is none."""
        found = self.query(query)
        assert len(found) <= 1, found
        return found[0][1] if found else None


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.exit(f"the tests need Prometheus, and there is no {name} here; on Debian: apt install prometheus", 1)
    return found


@contextmanager
def running_prometheus(
    directory: Path, config_name: str, found_by: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Iterator[Prometheus]:
    """Asks each second, as long as the context lasts; it dies with this process.

    config_name: of a file in infra/observability.
    found_by: what takes the place of `static_configs` or `file_sd_configs` there.
    """
    config = yaml.safe_load((OBSERVABILITY / config_name).read_text("utf-8"))
    config["global"]["scrape_interval"] = config["global"]["evaluation_interval"] = "1s"
    [job] = config["scrape_configs"]
    assert found_by.keys() <= job.keys()
    job |= found_by
    shutil.copy(ALERTS, directory)
    (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    options = [
        f"--config.file={directory / 'prometheus.yaml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([*_dying_with_us(), program("prometheus"), *options], stdout=log, stderr=log)
    try:
        prometheus = Prometheus(f"http://{address}")

        def is_ready() -> bool:
            assert process.poll() is None, (directory / "log").read_text()
            try:
                return httpx.get(f"{prometheus.url}/-/ready").status_code == 200
            except httpx.TransportError:
                return False

        wait_until(is_ready, timeout_s=60, what="Prometheus answers")
        yield prometheus
    finally:
        process.terminate()
        process.wait(30)


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program("promtool"), *arguments], capture_output=True, text=True)


def _dying_with_us() -> Sequence[str]:
    return ["setpriv", "--pdeathsig=TERM"] if sys.platform == "linux" else []
