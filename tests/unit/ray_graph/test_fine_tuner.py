"""What a fine-tuning run that failed on Ray means to its caller."""

import asyncio

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, RayError, RayTaskError

from deployments.errors import InvalidTrainingData, TrainingFailed, WorkerLost
from deployments.ray_fine_tuner import training_error


@pytest.mark.parametrize(
    "cause", [InvalidTrainingData("nothing is left", "f"), TrainingFailed("no number"), RuntimeError("what")]
)
def test_error_of_the_node_is_given_back(cause: Exception) -> None:
    error = RayTaskError("train", "traceback", cause).as_instanceof_cause()
    assert isinstance(error, RayError)
    assert training_error(error) is cause


@pytest.mark.parametrize(
    "error",
    [
        ActorDiedError(),
        ActorUnavailableError("not reached", None),
        OutOfMemoryError("too much memory"),
        RayTaskError("train", "traceback", ActorDiedError()),
        RayTaskError("train", "traceback", asyncio.CancelledError()),
    ],
)
def test_worker_that_is_gone_is_lost(error: RayError) -> None:
    assert isinstance(training_error(error), WorkerLost)
