from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from serve_app.launcher.cluster import failure

TRACEBACK = """\
The deployment failed to start 3 times in a row. See controller or replica logs for details. Error:
ray::ServeReplica:tritext:Generator.initialize_and_get_metadata() (pid=1)
  File "replica.py", line 1, in initialize
    raise RuntimeError(traceback.format_exc()) from None
RuntimeError: Traceback (most recent call last):
  File "generator.py", line 2, in start
deployments.model_files.ModelSourceError: the model directory /absent does not exist
"""


def application(status: str, message: str = "", **deployments: tuple[str, str]) -> ApplicationStatusOverview:
    overviews = {
        name: type("Overview", (), {"status": state, "message": text})() for name, (state, text) in deployments.items()
    }
    return ApplicationStatusOverview(ApplicationStatus(status), message, 0.0, overviews)


def test_an_application_on_its_way_has_not_failed() -> None:
    assert failure(application("DEPLOYING", Tokenizer=("HEALTHY", ""), Generator=("UPDATING", ""))) is None


def test_the_reason_of_a_replica_that_cannot_start_is_the_last_exception() -> None:
    reason = failure(application("DEPLOY_FAILED", Generator=("DEPLOY_FAILED", TRACEBACK)))
    assert reason is not None
    assert reason.startswith("the deployment Generator did not start")
    assert reason.endswith("the model directory /absent does not exist")


def test_an_application_that_cannot_be_built_tells_why() -> None:
    reason = failure(application("DEPLOY_FAILED", "Traceback\nValueError: two models answer to the name 'a'\n"))
    assert reason == "the application did not start: ValueError: two models answer to the name 'a'"
