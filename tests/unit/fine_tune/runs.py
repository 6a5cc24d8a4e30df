"""Trainings of the tiny model in this thread, and what came of them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from deployments.checkpoints.artifacts import ArtifactStore
from deployments.checkpoints.local import LocalStore
from deployments.config import TrainerConfig
from deployments.fine_tune.dataset import Array, Tokens
from deployments.fine_tune.run import Workplace, train_adapter
from deployments.fine_tune.watch import Watch
from deployments.training import (
    CheckpointSaved,
    Finished,
    Progress,
    Started,
    TrainingEvent,
    TrainingParams,
    TrainingRequest,
    Validated,
)

DOCUMENTS = [f"The quick brown fox number {i} jumps over the lazy dog. " * (1 + i % 5) for i in range(30)]
PARAMS = TrainingParams(epochs=2, learning_rate=0.01, rank=4, alpha=8.0, batch_size=2, sequence_length=128)
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def learned(ids: Array) -> Tokens:
    """A document of which all is learned."""
    return Tokens(ids.astype(np.int32), ids.astype(np.int32))


@dataclass(frozen=True)
class Trained:
    events: list[TrainingEvent]

    def only(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def started(self) -> Started:
        [event] = self.only(Started)
        return event  # type: ignore[no-any-return]

    @property
    def finished(self) -> Finished:
        [event] = self.only(Finished)
        return event  # type: ignore[no-any-return]

    @property
    def progress(self) -> list[Progress]:
        return self.only(Progress)

    @property
    def validated(self) -> list[Validated]:
        return self.only(Validated)

    @property
    def checkpoints(self) -> list[CheckpointSaved]:
        return self.only(CheckpointSaved)


class Trainings:
    """Of one base model, with one store."""

    def __init__(self, model: Path, home: Path) -> None:
        self.model = model
        self.artifacts = ArtifactStore(LocalStore(home / "objects"))
        self._home = home

    def request(
        self, params: TrainingParams = PARAMS, *, documents: Sequence[str] = DOCUMENTS, **fields: Any
    ) -> TrainingRequest:
        request = TrainingRequest("ftjob-1", 1, "acct", "ft_model_1", "tiny", self.put(documents), params)
        return replace(request, **fields)

    def put(self, documents: Sequence[str]) -> str:
        return self.artifacts.put_blob("".join(f"{json.dumps(text)}\n" for text in documents).encode())

    def train(
        self,
        request: TrainingRequest | None = None,
        *,
        every: int = 1000,
        emit: Callable[[TrainingEvent], None] = lambda _: None,
        watch: Watch | None = None,
        artifacts: ArtifactStore | None = None,
    ) -> Trained:
        events: list[TrainingEvent] = []

        def note(event: TrainingEvent) -> None:
            events.append(event)
            emit(event)

        config = TrainerConfig(num_threads=1, checkpoint_every_steps=every, niceness=0)
        work = Workplace(self.model, artifacts or self.artifacts, config, note, watch or Watch(stall_s=60.0))
        train_adapter(request or self.request(), work)
        return Trained(events)

    def fetch(self, digest: str) -> Path:
        directory = self._home / digest
        self.artifacts.fetch(digest, directory)
        return directory

    def tensors(self, digest: str) -> dict[str, Any]:
        return load_file(self.fetch(digest) / ADAPTER_FILES[1])
