"""The dispatcher deployment on a real Ray Serve: jobs end, and no worker is left behind, whatever is killed."""

from typing import Any

import pytest

from tests.integration.scenarios import outcomes

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def came_to() -> dict[str, Any]:
    return outcomes("dispatcher_runs")


def test_nudged_dispatcher_starts_a_job_before_it_would_have_looked(came_to: dict[str, Any]) -> None:
    assert came_to["quick"] == "succeeded"


@pytest.mark.parametrize("act", ["cancelled", "paused"])
def test_worker_of_a_job_that_its_owner_stops_ends_before_its_dispatcher_would_have_looked(
    came_to: dict[str, Any], act: str
) -> None:
    status, ended_s = came_to[act]
    assert status == act
    assert ended_s is not None


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
