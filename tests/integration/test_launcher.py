"""Starting and stopping the service as a user does: what is printed, what is left, what a failure says."""

import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from serve_app.launcher.local_state import make_runtime_dir
from serve_app.launcher.serve_file import read_serve_file
from tests.integration.service import LOCAL_CONFIG, Service, running, wait_until

pytestmark = pytest.mark.timeout(400)

NewHome = Callable[[], Path]


@pytest.fixture
def start(new_home: NewHome) -> Iterator[Callable[..., Service]]:
    """Starts services that are stopped at the end of the test."""
    started: list[Service] = []

    def run(profile: str = "plain", home: Path | None = None, **options: object) -> Service:
        service = Service(home or new_home(), profile, **options)  # type: ignore[arg-type]
        started.append(service)
        return service

    yield run
    for service in reversed(started):
        service.discard()


def test_a_stop_ends_every_process_and_the_next_start_prints_the_same_key(new_home: NewHome) -> None:
    home = new_home()
    with running(home, "plain") as service:
        first_key = service.key
        names = service.names()
        assert {"raylet", "gcs_server"} <= names
        assert "haproxy" not in names
        assert service.stop(signal.SIGTERM) == 0
        assert service.processes() == []
        assert service.output.endswith("Stopped.\n")
    with running(home, "plain") as again:
        assert again.key == first_key
        assert f"API key: {first_key}" in again.output
        assert "preparing" not in again.output
        assert again.complete().status_code == 200


def test_a_stop_during_the_start_leaves_nothing(start: Callable[..., Service]) -> None:
    service = start()
    wait_until(lambda: "Starting the deployments" in service.output, timeout_s=120, what="Ray")
    assert service.stop() == 0
    assert service.processes() == []


def test_what_a_killed_launcher_leaves_is_ended_by_the_next_start_which_has_the_same_key(
    start: Callable[..., Service], new_home: NewHome
) -> None:
    home = new_home()
    first = start("throughput", home)
    first.wait_ready()
    of_first, before = first.names(), first.processes()
    [told] = make_runtime_dir(home).glob("*/haproxy.cfg")
    [hard_stop_s] = re.findall(r"hard-stop-after (\d+)s", told.read_text())
    assert int(hard_stop_s) > read_serve_file(LOCAL_CONFIG, http_port=first.port).config.longest_answer_s
    first.process.kill()
    first.process.wait()
    second = start("throughput", home, port=first.port)
    second.wait_ready()
    assert second.key == first.key
    assert f"API key: {first.key}" in second.output
    assert "preparing" not in second.output
    assert second.complete().status_code == 200
    for names in (of_first, second.names()):
        assert {"raylet", "haproxy", "ray::DashboardAgent"} <= names
    assert set(before).isdisjoint(second.processes())
    assert second.stop(signal.SIGINT) == 0
    assert second.processes() == []


def test_services_of_one_machine_run_side_by_side(start: Callable[..., Service]) -> None:
    """HAProxy's files and Serve's ports have fixed names and numbers, unless each service is given its own."""
    first = start("throughput")
    first.wait_ready()
    second = start("throughput")
    second.wait_ready()
    assert first.complete().status_code == second.complete().status_code == 200
    strange = httpx.post(f"{first.url}/v1/completions", json={}, headers=second.headers, timeout=120)
    assert strange.status_code == 401
    assert first.stop() == 0
    assert second.complete().status_code == 200


def test_a_port_in_use_is_one_sentence(start: Callable[..., Service]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        service = start(port=port)
        assert service.process.wait(60) == 1
    assert service.output == f"tritext: port {port} is in use by another program; choose another one with --port\n"


def test_a_model_that_cannot_be_found_ends_the_start_before_ray(start: Callable[..., Service], tmp_path: Path) -> None:
    service = start(config=with_source(tmp_path, "/absent"))
    assert service.process.wait(60) == 1
    assert service.output == "tritext: the model directory /absent does not exist\n"


def test_a_replica_that_cannot_load_its_model_ends_the_start_with_the_reason(
    start: Callable[..., Service], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (model / name).write_text("{}")
    service = start(config=with_source(tmp_path, str(model)))
    assert service.process.wait(300) == 1
    assert "did not start:" in service.output
    assert "tritext: the deployment" in service.output
    assert "logs:" in service.output
    assert service.processes() == []


def with_source(directory: Path, source: str) -> Path:
    """The local configuration with another model source."""
    document = yaml.safe_load(LOCAL_CONFIG.read_text())
    document["applications"][0]["args"]["graph"]["models"][0]["source"] = source
    path = directory / "serve.yaml"
    path.write_text(yaml.safe_dump(document))
    return path
