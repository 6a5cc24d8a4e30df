"""A training from documents to the published adapter: it learns, reports, saves, and goes on as if nothing had been."""

import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from deployments.checkpoints.artifacts import ArtifactStore
from deployments.checkpoints.local import LocalStore
from deployments.config import EngineConfig, TrainerConfig
from deployments.engine.lora.peft_files import read_adapter
from deployments.engine.scheduler import Batch, ScheduledSequence
from deployments.engine.sequence import Sequence
from deployments.engine.transformers_runner import PagedRunner, load_transformers_runner
from deployments.errors import InvalidTrainingData, ObjectStoreError, TrainingFailed
from deployments.fine_tune.dataset import IGNORED, make_rows
from deployments.fine_tune.run import choose_device, give_way
from deployments.fine_tune.trainer import _Items
from deployments.fine_tune.watch import Stopped, Watch
from deployments.training import CheckpointSaved, Progress, TrainingEvent
from deployments.types import AdapterRef, SamplingParams
from tests.factories import Architecture
from tests.unit.engine.adapters import PEFT_WARNING
from tests.unit.fine_tune.runs import ADAPTER_FILES, DOCUMENTS, PARAMS, Trainings, learned

pytestmark = pytest.mark.filterwarnings(PEFT_WARNING)


def test_the_loss_falls_and_is_reported_step_by_step(trainings: Trainings) -> None:
    trained = trainings.train(trainings.request(replace(PARAMS, epochs=4, validation_split=0.2)))

    started, progress, finished = trained.started, trained.progress, trained.finished
    assert (started.step, started.batch_size, started.sequence_length) == (0, 2, 128)
    assert started.num_documents == 24
    assert [event.step for event in progress] == list(range(1, started.total_steps + 1))
    assert progress[-1].epoch == 4
    assert progress[-1].tokens == finished.tokens == 4 * started.num_tokens
    assert progress[-1].loss < 0.6 * progress[0].loss
    rates = [event.learning_rate for event in progress]
    assert max(rates) == PARAMS.learning_rate
    assert rates[-1] < 0.2 * PARAMS.learning_rate
    assert all(event.tokens_per_s > 0 for event in progress)
    assert progress[-1].seconds_left == 0 < progress[0].seconds_left
    validated = trained.validated
    assert len(validated) == 4
    assert validated[-1].step == started.total_steps
    assert validated[-1].loss < validated[0].loss < progress[0].loss


def test_the_learning_rate_rises_in_the_warmup_and_is_never_nothing(trainings: Trainings) -> None:
    trained = trainings.train(trainings.request(replace(PARAMS, warmup_ratio=0.5)))

    rates = [event.learning_rate for event in trained.progress]
    highest = rates.index(max(rates))
    assert 2 <= highest <= len(rates) - 2
    assert rates[: highest + 1] == sorted(rates[: highest + 1])
    assert rates[highest:] == sorted(rates[highest:], reverse=True)
    assert min(rates) > 0


def test_a_warmup_may_last_to_the_end(trainings: Trainings) -> None:
    trained = trainings.train(trainings.request(replace(PARAMS, warmup_ratio=1.0)))
    rates = [each.learning_rate for each in trained.progress]
    assert rates == sorted(rates)


@pytest.mark.parametrize(
    ("config", "has_gpu", "device"),
    [
        (TrainerConfig(num_gpus=0), True, "cpu"),
        (TrainerConfig(num_gpus=1), True, "cuda"),
        (TrainerConfig(num_gpus=1), False, "cpu"),
        (TrainerConfig(num_gpus=1, device="cpu"), True, "cpu"),
        (TrainerConfig(num_gpus=0, device="cuda"), True, "cuda"),
    ],
)
def test_a_gpu_is_taken_where_one_is_reserved(
    monkeypatch: pytest.MonkeyPatch, config: TrainerConfig, has_gpu: bool, device: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
    assert choose_device(config).type == device


def test_workers_share_whole_steps_and_learn_no_row_twice() -> None:
    rows = make_rows([learned(np.arange(3, 3 + length)) for length in (9, 5, 7)], 8, together=False)
    items = _Items(rows, [1, 0, 2], whole_steps_of=4)
    labels = [(items[index]["labels"] != IGNORED).sum() for index in range(len(items))]
    assert len(items) == 4
    assert labels[:3] == [(rows.labels[row] != IGNORED).sum() for row in (1, 0, 2)]
    assert labels[3] == 0


def test_the_loss_of_a_step_is_that_of_its_tokens_however_it_is_divided(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = trainings.request(replace(PARAMS, batch_size=6))
    whole = trainings.train(request)
    monkeypatch.setattr("deployments.fine_tune.trainer._TOKENS_AT_ONCE", 256)
    in_parts = trainings.train(request)

    assert [each.loss for each in in_parts.progress] == pytest.approx([each.loss for each in whole.progress], rel=1e-4)


def test_what_the_data_leaves_open_is_chosen(trainings: Trainings) -> None:
    started = trainings.train(trainings.request(replace(PARAMS, batch_size=None, sequence_length=None))).started

    assert (started.batch_size, started.sequence_length) == (1, 256)
    assert started.total_steps >= 16


def test_validation_data_of_its_own(trainings: Trainings) -> None:
    request = trainings.request(validation_data=trainings.put(["The quick brown fox"] * 3))

    trained = trainings.train(request)

    assert trained.started.num_documents == len(DOCUMENTS)
    assert len(trained.validated) == 2


@pytest.mark.parametrize(("architecture", "dropout"), [("llama", 0.0), ("llama", 0.2), ("gpt2", 0.2), ("gemma2", 0.2)])
def test_resumed_at_any_checkpoint_it_ends_with_the_same_adapter(
    architecture: Architecture, dropout: float, tiny: Callable[[Architecture], Path], tmp_path: Path
) -> None:
    trainings = Trainings(tiny(architecture), tmp_path)
    request = trainings.request(replace(PARAMS, dropout=dropout, weight_decay=0.1, validation_split=0.1))
    undisturbed = trainings.train(request, every=3)
    assert len(undisturbed.checkpoints) >= 3
    expected = trainings.tensors(undisturbed.finished.manifest)

    for saved in undisturbed.checkpoints:
        torch.manual_seed(saved.step)  # whatever else happened in the process
        resumed = trainings.train(replace(request, checkpoint=saved.manifest, fence=2), every=4)

        assert resumed.started == replace(undisturbed.started, step=saved.step)
        assert [event.step for event in resumed.progress] == list(
            range(saved.step + 1, resumed.started.total_steps + 1)
        )
        rest = undisturbed.progress[saved.step :]
        assert [event.loss for event in resumed.progress] == [event.loss for event in rest]
        assert [event.tokens for event in resumed.progress] == [event.tokens for event in rest]
        found = trainings.tensors(resumed.finished.manifest)
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_seeds_decide(trainings: Trainings) -> None:
    first, again, other = (trainings.train(trainings.request(replace(PARAMS, seed=seed))) for seed in (1, 1, 2))

    assert first.finished.manifest == again.finished.manifest
    assert first.finished.manifest != other.finished.manifest


def test_what_is_published_is_data_only_and_names_no_place(trainings: Trainings) -> None:
    trained = trainings.train(every=4)

    for event, kind in [(trained.checkpoints[0], "checkpoint"), (trained.finished, "adapter")]:
        manifest = trainings.artifacts.read_manifest(event.manifest)
        assert manifest.about["kind"] == kind
        assert {
            "account": "acct",
            "job": "ftjob-1",
            "fence": 1,
            "model": "ft_model_1",
        }.items() <= manifest.about.items()
        assert manifest.about["base_model"] == "tiny"
        directory = trainings.fetch(event.manifest)
        for file in manifest.files:
            content = (directory / file.name).read_bytes()
            assert str(trainings.model).encode() not in content
            if file.name.endswith(".json"):
                json.loads(content)
            else:
                assert file.name.endswith(".safetensors")
    names = {file.name for file in trainings.artifacts.read_manifest(trained.finished.manifest).files}
    assert names == set(ADAPTER_FILES)
    assert trained.finished.num_bytes == manifest.num_bytes
    assert trained.checkpoints[0].metrics["loss"] == trained.progress[3].loss


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
def test_the_adapter_computes_in_the_engine_what_it_does_with_peft(
    architecture: Architecture, tiny: Callable[[Architecture], Path], tmp_path: Path
) -> None:
    trainings = Trainings(tiny(architecture), tmp_path)
    directory = trainings.fetch(trainings.train().finished.manifest)
    token_ids = [0, *range(40, 70)]

    runner = load_transformers_runner(trainings.model, EngineConfig(dtype="float32", kv_cache_bytes=2_000_000))
    assert isinstance(runner, PagedRunner)
    adapter = runner.prepare_adapter(read_adapter(directory, AdapterRef("a", "a")))
    sequence = Sequence(
        0, 0, 0, tuple(token_ids), SamplingParams(), frozenset(), 512,
        block_table=list(range(2)), wants_prompt_logprobs=True, adapter=adapter,
    )  # fmt: skip
    logits = runner.run(Batch((ScheduledSequence(sequence, 0, len(token_ids)),)))

    base: Any = transformers.AutoModelForCausalLM.from_pretrained(trainings.model)
    with torch.inference_mode():
        plain = base.eval()(torch.tensor([token_ids])).logits[0]
        adapted = peft.PeftModel.from_pretrained(base, directory).eval()
        expected = adapted(torch.tensor([token_ids])).logits[0]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain, expected, atol=0.1)


def test_all_linears_but_the_head_are_adapted(trainings: Trainings) -> None:
    directory = trainings.fetch(trainings.train().finished.manifest)

    adapter = read_adapter(directory, AdapterRef("a", "a"))

    assert len(adapter.pairs) == 2 * 7
    assert all(np.abs(pair.b).max() > 0 for pair in adapter.pairs.values())
    assert json.loads((directory / ADAPTER_FILES[0]).read_text())["base_model_name_or_path"] is None


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_a_loss_that_is_no_number_ends_it_before_anything_is_saved(trainings: Trainings) -> None:
    events: list[TrainingEvent] = []

    with pytest.raises(TrainingFailed, match="not a finite number"):
        trainings.train(trainings.request(replace(PARAMS, learning_rate=1e30)), every=1, emit=events.append)

    losses = [event.loss for event in events if isinstance(event, Progress)]
    assert len([event for event in events if isinstance(event, CheckpointSaved)]) == len(losses)


def test_data_that_leaves_nothing_is_invalid(trainings: Trainings) -> None:
    with pytest.raises(InvalidTrainingData) as failure:
        trainings.train(trainings.request(documents=["", ""]))
    assert failure.value.param == "training_data"
    with pytest.raises(InvalidTrainingData) as failure:
        trainings.train(trainings.request(validation_data=trainings.put([""])))
    assert failure.value.param == "validation_data"


def test_data_that_is_gone_ends_it(trainings: Trainings) -> None:
    with pytest.raises(TrainingFailed, match="the data cannot be read"):
        trainings.train(trainings.request(training_data="0" * 64))


@pytest.mark.parametrize("checkpoint", ["gone", "of another training", "no checkpoint"])
def test_it_begins_again_where_the_checkpoint_cannot_be_used(checkpoint: str, trainings: Trainings) -> None:
    undisturbed = trainings.train()
    digest = {
        "gone": lambda: "0" * 64,
        "of another training": lambda: (
            trainings.train(trainings.request(replace(PARAMS, learning_rate=1e-3)), every=4).checkpoints[0].manifest
        ),
        "no checkpoint": lambda: undisturbed.finished.manifest,
    }[checkpoint]()

    trained = trainings.train(trainings.request(checkpoint=digest))

    assert trained.started.step == 0
    assert trained.finished.manifest == undisturbed.finished.manifest


def test_a_store_that_does_not_answer_is_told_as_that(trainings: Trainings, tmp_path: Path) -> None:
    class Silent(LocalStore):
        def create(self, *_: Any, **__: Any) -> bool:
            raise ObjectStoreError("no answer")

    silent = ArtifactStore(Silent(tmp_path / "objects"))

    with pytest.raises(ObjectStoreError):
        trainings.train(every=2, artifacts=silent)


def test_told_to_stop_it_ends_within_the_step(trainings: Trainings) -> None:
    watch = Watch(stall_s=60.0)
    events: list[TrainingEvent] = []

    def stop_after_two(event: TrainingEvent) -> None:
        events.append(event)
        if isinstance(event, Progress) and event.step == 2:
            watch.stop()

    with pytest.raises(Stopped):
        trainings.train(watch=watch, emit=stop_after_two)

    assert isinstance(events[-1], Progress)
    assert events[-1].step == 2
    assert trainings.train().finished  # the next one is not disturbed


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads, and one below all")
def test_the_training_s_thread_gives_way_and_no_other() -> None:
    found: list[tuple[int, int]] = []
    mine = os.getpriority(os.PRIO_PROCESS, 0)

    def train(config: TrainerConfig) -> None:
        give_way(config)
        inherited = threading.Thread(
            target=lambda: found.append((os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)))
        )
        inherited.start()
        inherited.join()

    for config in (TrainerConfig(niceness=7), TrainerConfig(niceness=8, scheduling="idle")):
        thread = threading.Thread(target=train, args=(config,))
        thread.start()
        thread.join()

    assert found == [(os.SCHED_OTHER, max(mine, 7)), (os.SCHED_IDLE, max(mine, 8))]
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
