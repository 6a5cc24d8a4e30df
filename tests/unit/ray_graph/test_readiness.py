"""Whether the service takes requests, by what Serve says of its deployments."""

from collections.abc import Callable

import pytest
from ray import serve
from ray.serve.schema import ApplicationStatusOverview, DeploymentStatusOverview, ServeStatus

from serve_app.ingress import ask_serve, can_answer


def overview(status: str, replicas: dict[str, int]) -> DeploymentStatusOverview:
    return DeploymentStatusOverview(status=status, status_trigger="UNSPECIFIED", replica_states=replicas, message="")


RUNNING = overview("HEALTHY", {"RUNNING": 1})
STARTING = overview("UPDATING", {"STARTING": 1})


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what Serve's controller says of the application `tritext`."""

    def say(**deployments: DeploymentStatusOverview) -> None:
        application = ApplicationStatusOverview("RUNNING", "", 0.0, deployments)
        monkeypatch.setattr(serve, "status", lambda: ServeStatus(applications={"tritext": application}))

    return say


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
    assert can_answer(overview(status, replicas)) is is_able


def test_every_deployment_must_be_able_to_answer(say: Callable[..., None]) -> None:
    say(Ingress=RUNNING, Tokenizer=RUNNING)
    assert ask_serve("tritext")
    say(Ingress=RUNNING, Tokenizer=STARTING)
    assert not ask_serve("tritext")


def test_jobs_and_webhooks_wait_for_a_dispatcher_and_nobody_else_does(say: Callable[..., None]) -> None:
    say(Ingress=RUNNING, Dispatcher=STARTING)
    assert ask_serve("tritext")


def test_a_controller_that_does_not_know_the_application_says_nothing_of_it(say: Callable[..., None]) -> None:
    say(Ingress=RUNNING)
    with pytest.raises(LookupError, match="no application 'other'"):
        ask_serve("other")
