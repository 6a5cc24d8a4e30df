from pathlib import Path

import pytest

from deployments.engine.native.build import missing_on_this_machine

from .models import write_model


@pytest.fixture(scope="session")
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled once for all tests of a run; skips where the processor cannot run the kernels."""
    reason = missing_on_this_machine()
    if reason is not None:
        pytest.skip(reason)
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")
