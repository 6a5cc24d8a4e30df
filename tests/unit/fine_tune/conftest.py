from collections.abc import Callable
from pathlib import Path

import pytest

from tests.factories import Architecture, make_tiny_model
from tests.unit.fine_tune.runs import Trainings


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Architecture], Path]:
    """The directory of a tiny model of an architecture."""
    made: dict[str, Path] = {}

    def make(architecture: Architecture) -> Path:
        if architecture not in made:
            made[architecture] = make_tiny_model(tmp_path_factory.mktemp(architecture), architecture=architecture)
        return made[architecture]

    return make


@pytest.fixture
def trainings(tiny: Callable[[Architecture], Path], tmp_path: Path) -> Trainings:
    return Trainings(tiny("llama"), tmp_path)
