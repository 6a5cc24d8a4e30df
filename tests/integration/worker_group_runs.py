"""Trainings by several workers on a real Ray: `python -m tests.integration.worker_group_runs`.

Prints what came of them, as one JSON object.
"""

import asyncio
import json
import os
import sys
import threading
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from safetensors.numpy import load_file

from deployments.checkpoints.opening import open_artifacts
from deployments.config import GraphConfig, ModelConfig, TrainerConfig
from deployments.errors import ServiceError
from deployments.fine_tuner import FineTunerNode
from deployments.training import (
    Alive,
    CheckpointSaved,
    Finished,
    Progress,
    TrainingEvent,
    TrainingParams,
    TrainingRequest,
)
from tests.factories import make_tiny_model

DOCUMENTS = [f"The quick brown fox number {i} jumps over the lazy dog. " * (1 + i % 5) for i in range(30)]
PARAMS = TrainingParams(epochs=2, learning_rate=0.01, rank=4, batch_size=4, sequence_length=128, validation_split=0.1)


class Trainings:
    def __init__(self, home: Path) -> None:
        self._home = home
        self._config = GraphConfig(
            models=(ModelConfig(id="tiny", source=str(make_tiny_model(home / "model"))),),
            trainer=TrainerConfig(num_cpus=0.5, num_threads=1, checkpoint_every_steps=3),
        )
        self.artifacts = open_artifacts(self._config.checkpoints, home)

    def request(
        self, num_workers: int, *, documents: list[str] = DOCUMENTS, epochs: int = PARAMS.epochs
    ) -> TrainingRequest:
        data = self.artifacts.put_blob("".join(f"{json.dumps(text)}\n" for text in documents).encode())
        params = replace(PARAMS, num_workers=num_workers, epochs=epochs)
        return TrainingRequest("ftjob-1", num_workers, "acct", "ft_model_1", "tiny", data, params)

    async def train(self, request: TrainingRequest) -> list[TrainingEvent]:
        events = [event async for event in FineTunerNode(self._config, self._home).train(request)]
        return [event for event in events if not isinstance(event, Alive)]

    async def stop_after_a_step(self, request: TrainingRequest) -> list[str]:
        """Threads that are left."""
        async with aclosing(FineTunerNode(self._config, self._home).train(request)) as events:
            async for event in events:
                if isinstance(event, Progress):
                    break
        names = [thread.name for thread in threading.enumerate()]
        return [name for name in names if name.startswith(("training-", "workers-"))]

    def adapter(self, events: list[TrainingEvent]) -> dict[str, Any]:
        [digest] = [event.manifest for event in events if isinstance(event, Finished)]
        self.artifacts.fetch(digest, self._home / digest)
        return load_file(self._home / digest / "adapter_model.safetensors")


async def main(home: Path) -> dict[str, Any]:
    trainings = Trainings(home)
    alone = await trainings.train(trainings.request(1))
    two = await trainings.train(trainings.request(2))
    saved = next(event for event in two if isinstance(event, CheckpointSaved))
    resumed = await trainings.train(replace(trainings.request(2), checkpoint=saved.manifest, fence=3))
    error = "none"
    try:
        await trainings.train(trainings.request(2, documents=[""]))
    except ServiceError as raised:
        error = f"{type(raised).__name__}: {raised.message}"
    return {
        "events": [[type(event).__name__ for event in events] for events in (alone, two)],
        "alone and two": difference(trainings.adapter(alone), trainings.adapter(two)),
        "two and resumed": difference(trainings.adapter(two), trainings.adapter(resumed)),
        "error of no data": error,
        "threads after closing": await trainings.stop_after_a_step(trainings.request(2, epochs=500)),
    }


def difference(first: dict[str, Any], second: dict[str, Any]) -> float:
    assert first.keys() == second.keys()
    return max(float(np.abs(first[name] - second[name]).max()) for name in first)


if __name__ == "__main__":
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    found = asyncio.run(main(Path(os.environ["TRITEXT_HOME"])))
    ray.shutdown()
    sys.stdout.write(json.dumps(found) + "\n")
