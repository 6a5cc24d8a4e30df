"""Training by several workers, through Ray Train. Imported only where a job asks for more than one.

Each worker does all that one alone would do, with its share of every step; the first of them tells what happens and
publishes. What they tell reaches the caller through an actor, which also hears whether they are to stop.
"""

import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray

from deployments.checkpoints.opening import open_artifacts
from deployments.config import GraphConfig, ModelConfig
from deployments.errors import ServiceError, TrainingFailed, WorkerLost
from deployments.fine_tune.watch import Stopped, Watch
from deployments.model_source import default_home, resolve
from deployments.training import TrainingEvent, TrainingRequest

_LOOK_S = 0.1


class Line:
    """The actor between the workers and who called for them."""

    def __init__(self) -> None:
        self._events: list[TrainingEvent] = []
        self._error: Exception | None = None
        self._ticks = 0
        self._stopped = False

    def tick(self) -> bool:
        """Whether to go on."""
        self._ticks += 1
        return not self._stopped

    def tell(self, event: TrainingEvent) -> None:
        self._events.append(event)

    def fail(self, error: Exception) -> None:
        """The first error counts: the others' follow from it."""
        self._error = self._error or error

    def stop(self) -> None:
        self._stopped = True

    def hear(self) -> tuple[list[TrainingEvent], int, Exception | None]:
        """The events since the last call, how often workers have got on, and what went wrong."""
        events, self._events = self._events, []
        return events, self._ticks, self._error


class LineWatch(Watch):
    """A worker's end of the line."""

    def __init__(self, line: Any) -> None:
        super().__init__(stall_s=float("inf"))
        self._line = line

    def tick(self) -> None:
        if not ray.get(self._line.tick.remote()):
            raise Stopped


def train_on_workers(
    request: TrainingRequest,
    config: GraphConfig,
    model: ModelConfig,
    emit: Callable[[TrainingEvent], None],
    watch: Watch,
) -> None:
    """As `run.train_adapter`. Besides, raises WorkerLost if a worker's process ends."""
    try:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError as error:
        raise TrainingFailed("training by several workers needs Ray Train: install tritext[distributed]") from error
    if not ray.is_initialized():
        raise TrainingFailed("training by several workers needs a Ray cluster")
    line = ray.remote(num_cpus=0)(Line).remote()
    gpus = config.trainer.num_gpus
    resources = {"CPU": config.trainer.num_cpus, **({"GPU": gpus} if gpus else {})}
    with tempfile.TemporaryDirectory(prefix="tritext-ray-train-") as directory:
        trainer = TorchTrainer(
            partial(work, request, config, model, line),
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=request.params.num_workers, use_gpu=gpus > 0, resources_per_worker=resources
            ),
            run_config=RunConfig(
                name=f"{request.job_id}-{request.fence}",
                storage_path=directory,
                failure_config=FailureConfig(max_failures=0),
            ),
        )
        fitted: list[Exception] = []
        thread = threading.Thread(target=_fit, args=(trainer, fitted), name=f"workers-{request.job_id}", daemon=True)
        thread.start()
        try:
            _listen(line, thread, emit, watch)
        finally:
            line.stop.remote()
            thread.join()
            ray.kill(line)
    if fitted:
        raise WorkerLost(f"Ray Train ended with {type(fitted[0]).__name__}")


def work(request: TrainingRequest, config: GraphConfig, model: ModelConfig, line: Any) -> None:
    """What each worker does, in a process of its own."""
    from deployments.fine_tune.run import Workplace, train_adapter

    home = default_home()
    watch = LineWatch(line)
    try:
        train_adapter(
            request,
            Workplace(
                Path(resolve(model.source, home, on_progress=lambda _: watch.tick())),
                open_artifacts(config.checkpoints, home),
                config.trainer,
                lambda event: ray.get(line.tell.remote(event)),
                watch,
                context_length=model.context_length,
                document_start=model.document_start,
            ),
        )
    except Stopped:
        raise
    except Exception as error:
        # Errors of others may not survive the way to another process.
        told = error if isinstance(error, ServiceError) else TrainingFailed(f"a worker: {type(error).__name__}")
        ray.get(line.fail.remote(told))
        raise


def _fit(trainer: Any, failed: list[Exception]) -> None:
    try:
        trainer.fit()
    except Exception as error:
        failed.append(error)


def _listen(line: Any, thread: threading.Thread, emit: Callable[[TrainingEvent], None], watch: Watch) -> None:
    """Passes on what the workers tell, until they have ended. Raises what went wrong, and Stopped."""
    heard_ticks = -1
    while True:
        ended = not thread.is_alive()
        events, ticks, error = ray.get(line.hear.remote())
        for event in events:
            emit(event)
        if ticks != heard_ticks:
            heard_ticks = ticks
            watch.tick()
        else:
            watch.check()
        if error is not None:
            raise error
        if ended:
            return
        time.sleep(_LOOK_S)
