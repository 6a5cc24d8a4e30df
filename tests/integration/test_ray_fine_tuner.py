"""Fine-tuning workers on a real Ray: what they tell, and that none is left behind, whatever happens to whom."""

from typing import Any

import pytest

from tests.integration.scenarios import outcomes

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def came_to() -> dict[str, Any]:
    return outcomes("ray_runs")


def but_beats(events: list[str]) -> list[str]:
    """Without those of a start that takes its time."""
    return [event for event in events if event != "Alive"]


def test_events_arrive_in_order(came_to: dict[str, Any]) -> None:
    assert but_beats(came_to["whole"]) == ["Started", "Progress", "Finished"]


def test_error_arrives_as_it_was_raised(came_to: dict[str, Any]) -> None:
    assert but_beats(came_to["failing"]) == [
        "Started",
        "Progress",
        "InvalidTrainingData: nothing is left (training_data[3])",
    ]


def test_run_that_finds_no_room_beats_and_is_an_overload_in_the_end(came_to: dict[str, Any]) -> None:
    *beats, last = came_to["no room"]
    assert set(beats) == {"Alive"}
    assert last == "Overloaded: the cluster had no room for a worker within 1 s (None)"


def test_worker_has_a_process_of_its_own_of_low_priority(came_to: dict[str, Any]) -> None:
    assert (came_to["closed"]["is_apart"], came_to["closed"]["niceness"]) == (True, 7)


def test_worker_that_is_killed_is_lost(came_to: dict[str, Any]) -> None:
    assert came_to["killed"]["error"] == "WorkerLost"


@pytest.mark.parametrize("scenario", ["killed", "closed", "stuck", "stopped"])
def test_worker_has_ended_soon_after_its_run_was_closed(came_to: dict[str, Any], scenario: str) -> None:
    """Also one that lets no other thread run, and one that is stopped as by a debugger."""
    assert came_to[scenario]["ended_after_s"] is not None


def test_worker_dies_with_the_process_that_called_for_it(came_to: dict[str, Any]) -> None:
    assert came_to["owner dies"] is not None


def test_what_workers_had_reserved_is_free_again(came_to: dict[str, Any]) -> None:
    assert but_beats(came_to["room again"]) == ["Started", "Progress", "Finished"]


def test_what_killed_workers_left_is_removed_by_the_next(came_to: dict[str, Any]) -> None:
    assert came_to["left behind"] == 1
