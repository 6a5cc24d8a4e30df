"""The dispatcher deployment on a real Ray Serve: jobs end, and no worker is left behind, whatever is killed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def came_to(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each scenario of `dispatcher_runs` came to."""
    home: Path = tmp_path_factory.mktemp("dispatcher")
    environment = {
        **os.environ,
        "TRITEXT_HOME": str(home),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.dispatcher_runs"], env=environment, capture_output=True, text=True
    )
    found = [line for line in done.stdout.splitlines() if line.startswith('{"quick"')]
    assert found, done.stdout + done.stderr
    return dict(json.loads(found[-1]))


def test_nudged_dispatcher_starts_a_job_before_it_would_have_looked(came_to: dict[str, Any]) -> None:
    status, claimed_s = came_to["quick"]
    assert status == "succeeded"
    assert claimed_s < 0.8


@pytest.mark.parametrize("act", ["cancelled", "paused"])
def test_worker_of_a_job_that_its_owner_stops_ends_at_once(came_to: dict[str, Any], act: str) -> None:
    status, ended_s = came_to[act]
    assert status == act
    assert ended_s < 3


def test_job_whose_worker_is_killed_goes_on_with_another(came_to: dict[str, Any]) -> None:
    assert came_to["worker killed"] == ["succeeded", 2]


def test_job_whose_dispatcher_is_killed_goes_on_and_its_worker_ends(came_to: dict[str, Any]) -> None:
    status, fence, ended_s = came_to["dispatcher killed"]
    assert (status, fence) == ("succeeded", 2)
    assert ended_s is not None


def test_dispatcher_that_is_told_to_stop_leaves_its_jobs_to_the_next_at_once(came_to: dict[str, Any]) -> None:
    status, attempts, ended_s = came_to["dispatcher stops"]
    assert (status, attempts) == ("queued", 0)
    assert ended_s is not None
