"""Training by several workers on a real Ray: as one alone trains, and resumed as if nothing had been."""

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def found() -> Any:
    """What `worker_group_runs` tells."""
    # Not pytest's directory: the names of Ray's sockets would be longer than the 107 bytes that sockets may have.
    with tempfile.TemporaryDirectory(prefix="workers-") as temporary:
        environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "TMPDIR": temporary}
        environment.pop("RAY_ADDRESS", None)
        run = subprocess.run(
            [sys.executable, "-m", "tests.integration.worker_group_runs"],
            env=environment,
            capture_output=True,
            text=True,
        )
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.splitlines()[-1])


def test_two_workers_tell_and_come_to_what_one_does(found: Any) -> None:
    alone, two = found["events"]
    assert two == alone
    assert two[0] == "Started"
    assert two[-1] == "Finished"
    assert found["alone and two"] < 1e-4


def test_resumed_they_end_with_the_same_adapter(found: Any) -> None:
    assert found["two and resumed"] == 0


def test_their_errors_are_those_of_one(found: Any) -> None:
    assert found["errors"]["no data"].startswith("InvalidTrainingData: the documents leave nothing")
    assert found["errors"]["no number"].startswith("TrainingFailed: the loss of step")


def test_closing_ends_them_all(found: Any) -> None:
    assert found["threads after closing"] == []
