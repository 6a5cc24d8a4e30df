"""The fine-tuning node: one training at a time, in a thread of this process. A plain class; knows no Ray and no job."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

from deployments.checkpoints.artifacts import ArtifactStore
from deployments.checkpoints.opening import open_artifacts
from deployments.config import GraphConfig, ModelConfig
from deployments.errors import ServiceError, TrainingFailed, WorkerLost
from deployments.fine_tune.watch import Stopped, Watch
from deployments.model_source import default_home, resolve
from deployments.training import BEAT_S, Alive, TrainingEvent, TrainingRequest

logger = logging.getLogger(__name__)


class FineTunerNode:
    """Implements `deployments.graph.FineTuner`.

    While nothing else is to be told it says `Alive`, unless its training has not got on for `trainer.stall_s`: one that
    hangs is silent. Closing the iterator stops the training at its next part of a step, and waits for that.
    """

    def __init__(
        self,
        config: GraphConfig,
        home: Path | None = None,
        *,
        artifacts: ArtifactStore | None = None,
        beat_s: float = BEAT_S / 2,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """home, artifacts: None takes `model_source.default_home()`, and the store that the configuration names."""
        self._config = config
        self._home = home or default_home()
        self._artifacts = artifacts or open_artifacts(config.checkpoints, self._home)
        self._beat_s = beat_s
        self._clock = clock

    async def train(self, request: TrainingRequest) -> AsyncGenerator[TrainingEvent, None]:
        model = self._model(request.base_model)
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[TrainingEvent | None] = asyncio.Queue()
        ended: asyncio.Future[BaseException | None] = loop.create_future()
        watch = Watch(stall_s=self._config.trainer.stall_s, clock=self._clock)

        def emit(event: TrainingEvent) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        def end(error: BaseException | None) -> None:
            ended.set_result(error)
            events.put_nowait(None)

        def work() -> None:
            error: BaseException | None = None
            try:
                self._work(request, model, emit, watch)
            except BaseException as failure:
                error = failure
            loop.call_soon_threadsafe(end, error)

        thread = threading.Thread(target=work, name=f"training-{request.job_id}", daemon=True)
        thread.start()
        try:
            while True:
                try:
                    async with asyncio.timeout(self._beat_s):
                        event = await events.get()
                except TimeoutError:
                    if watch.gets_on:
                        yield Alive()
                    continue
                if event is None:
                    break
                yield event
            error = ended.result()
            if error is not None:
                raise _told(error, request.job_id) from error
        finally:
            watch.stop()
            await ended
            thread.join()

    def _work(
        self, request: TrainingRequest, model: ModelConfig, emit: Callable[[TrainingEvent], None], watch: Watch
    ) -> None:
        watch.tick()
        directory = resolve(model.source, self._home, on_progress=lambda _: watch.tick())
        watch.tick()
        # Imported here: whoever composes the graph without training does not load torch, nor Ray without workers.
        if request.params.num_workers > 1:
            from deployments.fine_tune.distributed import train_on_workers

            train_on_workers(request, self._config, model, emit, watch)
            return
        from deployments.fine_tune.run import Workplace, train_adapter

        train_adapter(
            request,
            Workplace(
                directory,
                self._artifacts,
                self._config.trainer,
                emit,
                watch,
                context_length=model.context_length,
                document_start=model.document_start,
            ),
        )

    def _model(self, model_id: str) -> ModelConfig:
        for model in self._config.models:
            if model.id == model_id:
                return model
        raise TrainingFailed(f"the base model {model_id!r} is not configured")


def _told(error: BaseException, job_id: str) -> Exception:
    """What the caller is told: whatever is not of the service's own errors would come again, but for the disk's."""
    if isinstance(error, ServiceError | Stopped):
        return error
    logger.error("the training of %s failed", job_id, exc_info=error)
    if isinstance(error, OSError):
        return WorkerLost(f"its machine could not read or write a file: {error.strerror or type(error).__name__}")
    return TrainingFailed(f"the training ended with {type(error).__name__}")
