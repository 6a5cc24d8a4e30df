"""A generator on a real Ray Serve and a real S3 server: adapters come when requests need them, whatever is killed."""

from typing import Any

import pytest

from tests.integration.scenarios import outcomes

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def came_to() -> dict[str, Any]:
    return outcomes("adapter_runs")


def test_each_request_gets_its_adapter_also_when_there_are_more_than_fit(came_to: dict[str, Any]) -> None:
    assert came_to["in turns"] is True


def test_adapter_that_cannot_be_used_fails_its_own_requests_only(came_to: dict[str, Any]) -> None:
    assert came_to["refused"] == ["InvalidAdapter", "good", "CorruptObject"]


def test_stream_goes_on_at_a_new_replica_without_the_object_store(came_to: dict[str, Any]) -> None:
    assert came_to["replica killed"] == [True, True]


def test_store_that_does_not_answer_is_said_and_asked_again(came_to: dict[str, Any]) -> None:
    assert came_to["store gone"] == ["ObjectStoreError", True]
