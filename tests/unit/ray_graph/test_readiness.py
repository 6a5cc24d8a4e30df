"""Whether the service takes requests, by what Serve says of its deployments."""

import pytest
from ray.serve.schema import DeploymentStatusOverview

from serve_app.ingress import can_answer


@pytest.mark.parametrize(
    ("status", "replicas", "is_able"),
    [
        ("HEALTHY", {"RUNNING": 1}, True),
        ("UPDATING", {"RUNNING": 1, "STARTING": 1}, True),
        ("UNHEALTHY", {"RUNNING": 1, "STOPPING": 1}, True),
        ("HEALTHY", {}, True),  # asleep
        ("UPSCALING", {"STARTING": 1}, True),  # waking
        ("UPDATING", {"RECOVERING": 1}, True),  # found by a controller that was started anew
        ("UPDATING", {"STARTING": 1}, False),  # at the start of the service
        ("UNHEALTHY", {"STARTING": 1}, False),  # its last replica has died
        ("DEPLOY_FAILED", {}, False),
    ],
)
def test_who_has_or_gets_a_replica_can_answer(status: str, replicas: dict[str, int], *, is_able: bool) -> None:
    deployment = DeploymentStatusOverview(
        status=status, status_trigger="UNSPECIFIED", replica_states=replicas, message=""
    )
    assert can_answer(deployment) is is_able
