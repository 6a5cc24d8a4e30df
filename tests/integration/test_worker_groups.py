"""Training by several workers on a real Ray: as one alone trains, and resumed as if nothing had been."""

from typing import Any

import pytest

from tests.integration.scenarios import outcomes

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return outcomes("worker_group_runs")


def test_two_workers_tell_and_come_to_what_one_does(found: Any) -> None:
    alone, two = found["events"]
    assert two == alone
    assert two[0] == "Started"
    assert two[-1] == "Finished"
    assert found["alone and two"] < 1e-4


def test_resumed_they_end_with_the_same_adapter(found: Any) -> None:
    assert found["two and resumed"] == 0


def test_their_error_is_that_of_one(found: Any) -> None:
    assert found["error of no data"].startswith("InvalidTrainingData: the documents leave nothing")


def test_closing_ends_them_all(found: Any) -> None:
    assert found["threads after closing"] == []
