"""The fine-tuning node: a training in a thread, heard while it gets on, gone when its iterator is closed."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from deployments.checkpoints.opening import open_artifacts
from deployments.config import GraphConfig, ModelConfig, TrainerConfig
from deployments.errors import InvalidTrainingData, ObjectStoreError, ServiceError, TrainingFailed, WorkerLost
from deployments.fine_tune import run
from deployments.fine_tune.run import Workplace
from deployments.fine_tuner import FineTunerNode
from deployments.training import Alive, Finished, Progress, Started, TrainingEvent, TrainingParams, TrainingRequest
from tests.factories import make_tiny_model
from tests.unit.engine.adapters import PEFT_WARNING

pytestmark = pytest.mark.filterwarnings(PEFT_WARNING)

FINISHED = Finished("a" * 64, 10, 20, 1.0)
REQUEST = TrainingRequest("ftjob-1", 1, "acct", "ft_model_1", "tiny", "0" * 64, TrainingParams())

Work = Callable[[Workplace], None]
MakeNode = Callable[..., FineTunerNode]


@pytest.fixture
def make_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeNode:
    """Makes a node; with `work`, that is what it does instead of training. Its beats are short."""

    def make(work: Work | None = None, *, stall_s: float = 60.0) -> FineTunerNode:
        if work is not None:
            monkeypatch.setattr(run, "train_adapter", lambda _request, place: work(place))
        source = tmp_path / "model"
        if not source.exists():
            make_tiny_model(source)
        trainer = TrainerConfig(num_threads=1, niceness=0, stall_s=stall_s)
        config = GraphConfig(models=(ModelConfig(id="tiny", source=str(source)),), trainer=trainer)
        return FineTunerNode(config, tmp_path, beat_s=0.01)

    return make


@pytest.fixture(autouse=True)
async def no_thread_stays() -> AsyncIterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("training-")]


async def test_trains_from_the_store_into_the_store(make_node: MakeNode, tmp_path: Path) -> None:
    node = make_node()
    artifacts = open_artifacts(GraphConfig(models=(ModelConfig(id="m", source=""),)).checkpoints, tmp_path)
    data = artifacts.put_blob(b'"The quick brown fox jumps over the lazy dog."\n' * 9)
    params = TrainingParams(epochs=2, batch_size=1, sequence_length=64)

    events = [event async for event in node.train(replace(REQUEST, training_data=data, params=params))]

    told = [event for event in events if not isinstance(event, Alive)]
    assert isinstance(told[0], Started)
    assert all(isinstance(event, Progress) for event in told[1:-1])
    assert isinstance(told[-1], Finished)
    assert artifacts.read_manifest(told[-1].manifest).about["job"] == "ftjob-1"


async def test_it_says_that_it_is_alive_while_it_gets_on(make_node: MakeNode) -> None:
    heard = threading.Event()

    def work(place: Workplace) -> None:
        while not heard.is_set():
            place.watch.tick()
        place.emit(FINISHED)

    events: list[TrainingEvent] = []
    async for event in make_node(work).train(REQUEST):
        events.append(event)
        if len(events) == 3:
            heard.set()

    assert events[:3] == [Alive()] * 3
    assert [event for event in events if event != Alive()] == [FINISHED]


async def test_one_that_hangs_is_silent_and_heard_again_when_it_gets_on(make_node: MakeNode) -> None:
    go_on = threading.Event()

    def work(place: Workplace) -> None:
        go_on.wait()
        place.emit(FINISHED)

    async with aclosing(make_node(work, stall_s=1e-9).train(REQUEST)) as events:
        following = asyncio.ensure_future(anext(events))
        done, _ = await asyncio.wait({following}, timeout=0.1)
        assert not done
        go_on.set()
        assert await following == FINISHED


async def test_closing_stops_the_training_and_waits_for_it(make_node: MakeNode) -> None:
    def work(place: Workplace) -> None:
        while True:
            place.watch.tick()

    async with aclosing(make_node(work).train(REQUEST)) as events:
        assert await anext(events) == Alive()


async def test_cancelling_stops_it_too(make_node: MakeNode) -> None:
    started = asyncio.Event()

    def work(place: Workplace) -> None:
        place.emit(FINISHED)
        while True:
            place.watch.tick()

    async def read() -> None:
        async with aclosing(make_node(work).train(REQUEST)) as events:
            async for _ in events:
                started.set()

    reading = asyncio.ensure_future(read())
    await started.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


@pytest.mark.parametrize(
    "raised",
    [InvalidTrainingData("nothing to train on"), TrainingFailed("no finite number"), ObjectStoreError("no answer")],
    ids=lambda error: type(error).__name__,
)
async def test_errors_of_the_service_reach_the_caller(raised: ServiceError, make_node: MakeNode) -> None:
    def work(_: Workplace) -> None:
        raise raised

    with pytest.raises(type(raised), match=raised.message):
        async for _ in make_node(work).train(REQUEST):
            pass


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (RuntimeError("the text of a document"), TrainingFailed("the training ended with RuntimeError")),
        (OSError(28, "No space left on device"), WorkerLost("its machine could not read or write a file: No space")),
    ],
)
async def test_others_are_told_by_their_kind(
    raised: Exception, expected: ServiceError, make_node: MakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    def work(_: Workplace) -> None:
        raise raised

    with pytest.raises(type(expected), match=expected.message):
        async for _ in make_node(work).train(REQUEST):
            pass
    assert "ftjob-1" in caplog.text


async def test_what_was_told_before_an_error_is_heard(make_node: MakeNode) -> None:
    def work(place: Workplace) -> None:
        place.emit(FINISHED)
        raise TrainingFailed("afterwards")

    events = []
    with pytest.raises(TrainingFailed):
        async for event in make_node(work).train(REQUEST):
            events.append(event)
    assert FINISHED in events


async def test_base_model_must_be_configured(make_node: MakeNode) -> None:
    with pytest.raises(TrainingFailed, match="'other' is not configured"):
        await anext(make_node().train(replace(REQUEST, base_model="other")))
