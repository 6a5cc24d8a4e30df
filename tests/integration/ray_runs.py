"""Fine-tuning runs on a real Ray with nodes that only say who they are: `python -m tests.integration.ray_runs`.

Prints what each scenario came to, as one JSON object.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
import ray

from deployments.config import GraphConfig
from deployments.errors import InvalidTrainingData, ServiceError
from deployments.model_source import default_home
from deployments.ray_fine_tuner import RayFineTuner
from deployments.training import Alive, Started, TrainingEvent, TrainingParams, TrainingRequest
from tests.fake_fine_tuner import finished, progress

REQUEST = TrainingRequest("ftjob-1", 1, "account", "ft_model_1", "m", "d" * 64, TrainingParams())


class Node:
    """Tells its process and its niceness where `Started` has steps; then does what its subclass does."""

    def __init__(self, _config: GraphConfig, _home: Path) -> None:
        pass

    async def train(self, request: TrainingRequest) -> AsyncGenerator[TrainingEvent, None]:
        assert request == REQUEST
        await asyncio.to_thread((Path(tempfile.gettempdir()) / "left").touch)
        yield Started(os.getpid(), os.nice(0), 0, 0, 0, 0)
        async for event in self.rest():
            yield event

    async def rest(self) -> AsyncGenerator[TrainingEvent, None]:
        yield progress(1)
        yield finished()


class Failing(Node):
    async def rest(self) -> AsyncGenerator[TrainingEvent, None]:
        yield progress(1)
        raise InvalidTrainingData("nothing is left", "training_data[3]")


class Waiting(Node):
    async def rest(self) -> AsyncGenerator[TrainingEvent, None]:
        while True:
            yield Alive()
            await asyncio.sleep(0.05)


class Stuck(Node):
    """Once its beat has been received, never lets any other thread of its process run."""

    async def rest(self) -> AsyncGenerator[TrainingEvent, None]:
        yield Alive()
        received, stuck = signs(os.getpid())
        await existing(received)
        stuck.touch()
        re.match("(a+)+$", "a" * 60 + "b")


def signs(pid: int) -> tuple[Path, Path]:
    """Files that are there as soon as a `Stuck` of this process was heard of, and as soon as it is stuck."""
    return default_home() / f"received-{pid}", default_home() / f"stuck-{pid}"


async def let_stick(pid: int) -> None:
    received, stuck = signs(pid)
    received.touch()
    await existing(stuck)


async def existing(path: Path) -> None:
    while not await asyncio.to_thread(path.exists):
        await asyncio.sleep(0.05)


def make_config(**trainer: Any) -> GraphConfig:
    return GraphConfig.model_validate(
        {"models": [{"id": "m", "source": "/nowhere"}], "trainer": {"num_cpus": 1, "niceness": 7} | trainer}
    )


async def whole(node: type[Node], **trainer: Any) -> list[str]:
    """The names of what came, the last that of an error with its text, if there was one."""
    came: list[str] = []
    try:
        async for event in RayFineTuner(make_config(**trainer), make_node=node).train(REQUEST):
            came.append(type(event).__name__)
    except ServiceError as error:
        came.append(f"{type(error).__name__}: {error.message} ({error.param})")
    return came


async def with_worker(node: type[Node], act: Callable[[psutil.Process], None]) -> dict[str, Any]:
    """Acts on the worker once it trains, and goes on to the end, or for a second where none comes; then closes."""
    result: dict[str, Any] = {}
    worker: psutil.Process | None = None  # what comes before it trains are beats of its start
    async with aclosing(RayFineTuner(make_config(), make_node=node).train(REQUEST)) as events:
        try:
            async with asyncio.timeout(None) as limit:
                async for event in events:
                    if isinstance(event, Started):
                        worker = psutil.Process(event.step)
                        result["niceness"] = event.total_steps
                        result["is_apart"] = worker.pid != os.getpid()
                        act(worker)
                        if act is psutil.Process.suspend:
                            limit.reschedule(asyncio.get_running_loop().time() + 1)
                    elif worker is not None and act is look:
                        if node is Stuck:
                            await let_stick(worker.pid)
                        break
        except TimeoutError:
            result["error"] = "silent"
        except ServiceError as error:
            result["error"] = type(error).__name__
    assert worker is not None
    result["ended_after_s"] = await ended_after(worker)
    return result


def look(_worker: psutil.Process) -> None:
    """Does nothing, and lets the run be closed."""


async def ended_after(worker: psutil.Process) -> float | None:
    """In seconds; None where it had not ended after thirty."""
    started_at = time.monotonic()
    while time.monotonic() - started_at < 30:
        with contextlib.suppress(psutil.NoSuchProcess):
            if worker.status() != psutil.STATUS_ZOMBIE:
                await asyncio.sleep(0.05)
                continue
        return round(time.monotonic() - started_at, 2)
    return None


@ray.remote(num_cpus=0)
class Owner:
    """Another process that calls for a worker."""

    async def pids(self) -> tuple[int, int]:
        self._events = RayFineTuner(make_config(), make_node=Stuck).train(REQUEST)
        worker: int | None = None
        async for event in self._events:
            if isinstance(event, Started):
                worker = event.step
            elif worker is not None:
                await let_stick(worker)
                return os.getpid(), worker
        raise AssertionError("it has not started")


async def owner_dies() -> float | None:
    owner = Owner.remote()  # type: ignore[attr-defined]
    owner_pid, worker_pid = await owner.pids.remote()
    worker = psutil.Process(worker_pid)
    os.kill(owner_pid, signal.SIGKILL)
    return await ended_after(worker)


async def has_room_again() -> list[str]:
    """After all that, what the workers had reserved is free."""
    return await whole(Node, num_cpus=2)


async def left_behind() -> int:
    """How many workers' temporary directories there are: only the last one's."""
    return sum(name.startswith("tritext-worker-") for name in os.listdir(tempfile.gettempdir()))


SCENARIOS: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
    "whole": lambda: whole(Node),
    "failing": lambda: whole(Failing),
    "no room": lambda: whole(Node, num_cpus=100, start_wait_s=1),
    "killed": lambda: with_worker(Waiting, psutil.Process.kill),
    "stopped": lambda: with_worker(Waiting, psutil.Process.suspend),
    "closed": lambda: with_worker(Waiting, look),
    "stuck": lambda: with_worker(Stuck, look),
    "owner dies": owner_dies,
    "room again": has_room_again,
    "left behind": left_behind,
}


async def main() -> dict[str, Any]:
    return {name: await scenario() for name, scenario in SCENARIOS.items()}


if __name__ == "__main__":
    ray.init(address="local", num_cpus=2, object_store_memory=100_000_000, include_dashboard=False, log_to_driver=False)
    try:
        sys.stdout.write(json.dumps(asyncio.run(main())) + "\n")
    finally:
        ray.shutdown()
