from pathlib import Path

import pytest

from deployments.engine.native.build import compiled_kernels, missing_on_this_machine

from .models import write_model


def pytest_itemcollected(item: pytest.Item) -> None:
    """Whichever test runs first waits for the compiler."""
    item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled once for all tests of a run; skips where the processor cannot run the kernels."""
    reason = missing_on_this_machine()
    if reason is not None:
        pytest.skip(reason)
    cache = tmp_path_factory.mktemp("kernels")
    compiled_kernels(cache)
    return cache


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")
