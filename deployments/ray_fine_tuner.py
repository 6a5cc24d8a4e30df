"""Fine-tuning on Ray: one actor for each run, in a process of its own, around the plain node. Knows no job's status."""

import asyncio
import os
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from deployments.config import GraphConfig, TrainerConfig
from deployments.errors import Overloaded, WorkerLost
from deployments.graph import FineTuner
from deployments.model_source import default_home
from deployments.scratch import make_scratch
from deployments.training import BEAT_S, Alive, TrainingEvent, TrainingRequest

MakeNode = Callable[[GraphConfig, Path], FineTuner]

_START_RETRY_S = 60.0


def make_node(config: GraphConfig, home: Path) -> FineTuner:
    # Imported here, so that the processes that only call for a worker do not load what it needs.
    from deployments.fine_tuner import FineTunerNode

    return FineTunerNode(config, home)


class FineTuneWorker:
    """The actor. It has nothing to do before it is told to train, so that whatever goes wrong is an error of that."""

    def __init__(self, config: GraphConfig, make_node: MakeNode) -> None:
        self._config = config
        self._make_node = make_node

    async def start(self) -> None:
        """Returns when the process runs."""
        # On Linux a priority is a thread's; those that this one starts inherit it.
        os.setpriority(os.PRIO_PROCESS, 0, max(self._config.trainer.niceness, os.getpriority(os.PRIO_PROCESS, 0)))
        # A worker is ended by a kill: what it leaves must be found.
        directory, self._scratch = make_scratch(Path(tempfile.gettempdir()))
        tempfile.tempdir = str(directory)

    async def train(self, request: TrainingRequest) -> AsyncGenerator[TrainingEvent, None]:
        node = self._make_node(self._config, default_home())
        async with aclosing(node.train(request)) as events:
            async for event in events:
                yield event


class RayFineTuner:
    """`deployments.graph.FineTuner`, each run in an actor that dies with this process.

    A run waits for the cluster to have room for its actor, for machines to start if need be; it says meanwhile that it
    is alive. make_node: what the actor runs.
    """

    def __init__(self, config: GraphConfig, *, make_node: MakeNode = make_node) -> None:
        self._config = config
        self._make_node = make_node

    async def train(self, request: TrainingRequest) -> AsyncGenerator[TrainingEvent, None]:
        actor = _worker_class(self._config.trainer).remote(self._config, self._make_node)
        try:
            async with aclosing(self._starting(actor)) as beats:
                async for beat in beats:
                    yield beat
            async for reference in actor.train.remote(request):
                yield await reference
        except RayError as error:
            raise training_error(error) from error
        finally:
            ray.kill(actor)

    async def _starting(self, actor: Any) -> AsyncGenerator[Alive, None]:
        """Beats until the actor runs, also before the end of the wait is noticed. Raises Overloaded."""
        wait_s = self._config.trainer.start_wait_s
        started = asyncio.ensure_future(_result(actor.start.remote()))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        try:
            while not (await asyncio.wait({started}, timeout=min(BEAT_S, wait_s / 2)))[0]:
                yield Alive()
                if loop.time() >= deadline and not started.done():
                    raise Overloaded(f"the cluster had no room for a worker within {wait_s:g} s", _START_RETRY_S)
            await started
        finally:
            started.cancel()


def training_error(error: RayError) -> Exception:
    """What a failed run means to its caller: an error that the node raised is given back as it was raised there."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, Exception) and not isinstance(error.cause, RayError):
        return error.cause
    if isinstance(error, RayActorError):
        return WorkerLost("its process is gone")
    return WorkerLost(f"Ray lost it ({type(error).__name__})")


def _worker_class(config: TrainerConfig) -> Any:
    """Never restarted by Ray: what is to happen after a worker is lost is decided by whoever called for it."""
    options = {"num_cpus": config.num_cpus, "num_gpus": config.num_gpus, "max_restarts": 0, "max_task_retries": 0}
    return ray.remote(**options)(FineTuneWorker)


async def _result(reference: Any) -> Any:
    return await reference
