"""Replicas of a generator on a real Ray Serve get what they have already, with both ways in which Serve calls them."""

from typing import Any

import pytest

from tests.integration.scenarios import outcomes

pytestmark = pytest.mark.timeout(400)

# As `serve_app.launcher.profile` sets them.
TRANSPORTS = {
    "gRPC": {
        "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    },
    "actor calls": {},
}


@pytest.fixture(scope="module", params=TRANSPORTS)
def came_to(request: pytest.FixtureRequest) -> dict[str, Any]:
    # A pause of this machine is no silence of a replica.
    patience = {"RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "10"}
    return outcomes("routing_runs", TRANSPORTS[request.param] | patience)


def test_conversations_find_all_that_was_computed_of_them(came_to: dict[str, Any]) -> None:
    assert came_to["conversations"]["recomputed"] == 0
    assert came_to["conversations"]["replicas"] >= 2


def test_each_adapter_is_loaded_by_one_replica(came_to: dict[str, Any]) -> None:
    assert came_to["adapters"] == 6


def test_crowd_of_one_beginning_spreads(came_to: dict[str, Any]) -> None:
    assert came_to["crowd"] >= 2


def test_loss_of_the_preferred_replica_is_no_error(came_to: dict[str, Any]) -> None:
    assert came_to["killed"] == {"stream": True, "others": True, "elsewhere": True}


def test_stream_of_an_engine_that_dies_goes_on_elsewhere_and_its_replica_is_replaced(came_to: dict[str, Any]) -> None:
    assert came_to["dead engine"] == {"stream": True, "failed": False, "others": True}


def test_stream_of_an_engine_that_is_stuck_goes_on_elsewhere(came_to: dict[str, Any]) -> None:
    assert came_to["stuck engine"] == {"stream": True, "failed": False, "others": True}


def test_broken_device_fails_what_it_computes_and_nothing_after_that(came_to: dict[str, Any]) -> None:
    assert came_to["broken device"] == {"stream": False, "failed": True, "others": True}
