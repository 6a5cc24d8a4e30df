"""A fine-tuner that plays scripts: it trains nothing, and costs no time."""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from enum import Enum, auto

from deployments.training import CheckpointSaved, Finished, Progress, Started, TrainingEvent, TrainingRequest

MANIFEST = "a" * 64


class Silence(Enum):
    """Nothing comes any more until the iterator is closed."""

    FOREVER = auto()


Script = Iterable[TrainingEvent | Exception | Silence]


def started(step: int = 0, *, total_steps: int = 2) -> Started:
    return Started(step, total_steps, num_documents=3, num_tokens=300, batch_size=1, sequence_length=64)


def progress(step: int, *, total_steps: int = 2, loss: float = 2.5) -> Progress:
    return Progress(
        step,
        total_steps,
        epoch=step / total_steps,
        loss=loss,
        learning_rate=1e-4,
        tokens=100 * step,
        tokens_per_s=50.0,
        seconds_left=2.0 * (total_steps - step),
    )


def checkpoint(step: int) -> CheckpointSaved:
    return CheckpointSaved(step, f"{step:064x}", {"loss": 2.0})


def finished(*, manifest: str = MANIFEST, tokens: int = 200) -> Finished:
    return Finished(manifest, num_bytes=1000, tokens=tokens, training_time_s=4.0)


SUCCESS: Script = (started(), progress(1), checkpoint(1), progress(2), finished())


class FakeFineTuner:
    """Plays the next script for each request, the last one again and again; an exception in a script is raised.

    requests: what was asked for. num_open: workers that have not been ended. silent: set when a script keeps silent.
    """

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts) or [SUCCESS]
        self.requests: list[TrainingRequest] = []
        self.num_open = 0
        self.silent = asyncio.Event()

    async def train(self, request: TrainingRequest) -> AsyncGenerator[TrainingEvent, None]:
        script = self.scripts[min(len(self.requests), len(self.scripts) - 1)]
        self.requests.append(request)
        self.num_open += 1
        try:
            for step in script:
                await asyncio.sleep(0)
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, Silence):
                    self.silent.set()
                    await asyncio.Event().wait()
                else:
                    yield step
        finally:
            self.num_open -= 1
