"""transformers' Trainer, for adapters on packed sequences: what it says, how it saves, and what it draws are ours.

Everything random in a step is drawn from a generator that is seeded for the step, from the seed and the step's number.
So a run that goes on from a checkpoint draws what it would have drawn without the interruption.
"""

import hashlib
import math
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from deployments.errors import TrainingFailed
from deployments.fine_tune import checkpoint
from deployments.fine_tune.dataset import IGNORED, Rows, orders
from deployments.fine_tune.packed_model import PackedModel
from deployments.fine_tune.shape import Shape, checkpoint_interval
from deployments.fine_tune.watch import Watch
from deployments.training import CheckpointSaved, Progress, TrainingEvent, TrainingParams, Validated

TRAINER_STATE_NAME = "trainer_state.json"

_STEPS_OF_LATE = 20
_TOKENS_AT_ONCE = 2048
"""How many tokens are computed at once: enough to be busy. What is kept for the backward pass of one takes some hundred
kilobytes with a small model, and seven megabytes with one of seven billion parameters."""

SaveCheckpoint = Callable[[list[Path], int], str]
"""Makes the files, of a checkpoint after so many steps, an artifact; returns its digest."""


@dataclass(frozen=True, slots=True)
class Run:
    """What is trained, and who is told. run: names the data, the parameters and the shape; see TrainingState."""

    run: str
    params: TrainingParams
    shape: Shape
    rows: Rows
    validation: Rows | None
    checkpoint_every_steps: int
    emit: Callable[[TrainingEvent], None]
    save: SaveCheckpoint
    watch: Watch
    clock: Callable[[], float] = time.monotonic


class AdapterTrainer(Trainer):
    """Trains the adapter in `model`. `go` is the way to start it."""

    def __init__(self, model: PackedModel, run: Run, *, device: torch.device, output_dir: Path) -> None:
        self._run = run
        self._packed = model
        self._adapted: PeftModel = model.model
        self._step_seeded = -1
        self._metrics: dict[str, float] = {}
        workers = run.params.num_workers
        self._items = list(orders(len(run.rows), run.params.seed, run.shape.epochs))
        tokens_of_row = (run.rows.labels != IGNORED).sum(1)
        self._tokens_up_to = np.concatenate([[0], tokens_of_row[self._items].cumsum()])
        self._late: deque[tuple[float, int, int]] = deque(maxlen=_STEPS_OF_LATE + 1)
        super().__init__(
            model=model,
            args=_arguments(run, device, output_dir),
            data_collator=_collate,
            train_dataset=_Items(run.rows, self._items, whole_steps_of=run.shape.batch_size if workers > 1 else 1),
            callbacks=[_Schedule(run)],
        )
        self.remove_callback(PrinterCallback)

    def go(self, from_checkpoint: Path | None = None) -> None:
        """Trains to the end, from the beginning or from the checkpoint in the directory.

        Raises Stopped when told to stop, TrainingFailed if the loss or a gradient is no finite number, ValueError if
        the checkpoint is of another training, and what `save` raises.
        """
        if from_checkpoint is not None:
            state = TrainerState(global_step=checkpoint.read_state(from_checkpoint).step)
            state.train_batch_size = self._train_batch_size
            state.compute_steps(self.args, self._run.shape.total_steps)  # type: ignore[no-untyped-call]
            state.save_to_json(str(from_checkpoint / TRAINER_STATE_NAME))
        self._note_time(0 if from_checkpoint is None else state.global_step)
        self.train(resume_from_checkpoint=None if from_checkpoint is None else str(from_checkpoint))
        if not all(
            bool(parameter.isfinite().all()) for parameter in self._adapted.parameters() if parameter.requires_grad
        ):
            raise TrainingFailed("the adapter came out with numbers that are not finite; lower the learning rate")

    def tokens(self, step: int) -> int:
        """How many tokens have been trained on after so many steps."""
        return int(self._tokens_up_to[min(step * self._run.shape.batch_size, len(self._items))])

    def tell(self, event: TrainingEvent) -> None:
        """Of several workers the first one tells."""
        if self.is_world_process_zero():
            self._run.emit(event)

    def _note_time(self, step: int) -> int:
        tokens = self.tokens(step)
        self._late.append((self._run.clock(), step, tokens))
        return tokens

    # What follows replaces parts of Trainer, under its names.

    def create_scheduler(self, num_training_steps: int, _optimizer: Any = None) -> LambdaLR:
        warmup = min(int(self._run.params.warmup_ratio * num_training_steps), num_training_steps - 1)

        def factor(step: int) -> float:
            """Rises linearly to 1 in the step after the warmup, then falls; the last step is above 0, and no step 0."""
            return min((step + 1) / (warmup + 1), (num_training_steps - step) / (num_training_steps - warmup))

        assert self.optimizer is not None  # noqa: S101
        self.lr_scheduler = LambdaLR(self.optimizer, factor)
        return self.lr_scheduler

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        self._run.watch.tick()
        if self.state.global_step != self._step_seeded:
            self._step_seeded = self.state.global_step
            torch.manual_seed(_step_seed(self._run.params.seed, self._step_seeded, self.args.process_index))
        return super().training_step(model, inputs, num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        del start_time
        if "loss" not in logs:
            return
        step, shape = self.state.global_step, self._run.shape
        if not (math.isfinite(logs["loss"]) and math.isfinite(logs["grad_norm"])):
            raise TrainingFailed(f"the loss of step {step} is not a finite number; lower the learning rate")
        tokens = self._note_time(step)
        (then, step_then, tokens_then), (now, _, _) = self._late[0], self._late[-1]
        seconds = max(now - then, 1e-9)
        self._metrics = {"loss": logs["loss"], "learning_rate": logs["learning_rate"]}
        self.tell(
            Progress(
                step,
                shape.total_steps,
                epoch=shape.epoch(step),
                loss=logs["loss"],
                learning_rate=logs["learning_rate"],
                tokens=tokens,
                tokens_per_s=(tokens - tokens_then) / seconds,
                seconds_left=(shape.total_steps - step) * seconds / (step - step_then),
            )
        )
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def evaluate(self, *_arguments: Any, **_options: Any) -> dict[str, float]:
        rows = self._run.validation
        assert rows is not None  # noqa: S101
        loss = torch.zeros((), device=self.args.device)
        model = self._packed.eval()
        with torch.no_grad():
            for start in range(0, len(rows), self._train_batch_size):
                self._run.watch.tick()
                some = [_item(rows, row) for row in range(start, min(start + self._train_batch_size, len(rows)))]
                inputs = self._prepare_inputs(_collate(some))
                with self.accelerator.autocast():
                    loss += model(**inputs, num_items_in_batch=rows.num_tokens)["loss"]
        self.tell(Validated(self.state.global_step, float(loss)))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, {"eval_loss": float(loss)}
        )
        return {"eval_loss": float(loss)}

    def _save_checkpoint(self, _model: Any, _trial: Any) -> None:
        if not self.is_world_process_zero():
            return
        step = self.state.global_step
        with tempfile.TemporaryDirectory(dir=self.args.output_dir) as directory:
            files = checkpoint.write_checkpoint(
                Path(directory),
                step=step,
                run=self._run.run,
                model=self._adapted,
                optimizer=self.optimizer,
                scheduler=self.lr_scheduler,
            )
            self._run.watch.tick()
            digest = self._run.save(files, step)
        self._run.watch.tick()
        self.tell(CheckpointSaved(step, digest, self._metrics))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, _model: Any = None) -> None:
        directory = Path(resume_from_checkpoint)
        if checkpoint.read_state(directory).run != self._run.run:
            raise ValueError("the checkpoint is of another training")
        checkpoint.read_adapter(directory, self._adapted)

    def _load_optimizer_and_scheduler(self, directory: str | None) -> None:
        if directory is not None:
            checkpoint.read_optimizer(
                Path(directory), model=self._adapted, optimizer=self.optimizer, scheduler=self.lr_scheduler
            )

    def _load_rng_state(self, _checkpoint: str | None) -> None:
        """There is none: see above."""

    def _load_scaler(self, _checkpoint: str | None) -> None:
        """There is none: bfloat16 needs no scaling."""


class _Schedule(TrainerCallback):
    """Tells the Trainer after which steps to validate and to save. The end needs no checkpoint: the adapter is it."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._saves_every = checkpoint_interval(run.shape.total_steps, run.checkpoint_every_steps)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        del args, kwargs
        step = state.global_step
        control.should_evaluate = self._run.validation is not None and self._run.shape.ends_epoch(step)
        control.should_save = step % self._saves_every == 0 and step < self._run.shape.total_steps
        return control


class _Items:
    """The rows in the order of training, all passes over the data one after the other.

    Then as many rows of which nothing is learned as the last step wants to be whole: several workers each take their
    share of it, and would begin again with the first rows.
    """

    def __init__(self, rows: Rows, items: Sequence[int], *, whole_steps_of: int) -> None:
        self._rows = rows
        self._items = items
        self._number = len(items) + -len(items) % whole_steps_of

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < len(self._items):
            return _item(self._rows, self._items[index])
        empty = _item(self._rows, 0)
        return {**empty, "labels": np.full_like(empty["labels"], IGNORED)}


def _item(rows: Rows, row: int) -> dict[str, Any]:
    return {"input_ids": rows.token_ids[row], "position_ids": rows.positions[row], "labels": rows.labels[row]}


def _collate(items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.stack([item[name] for item in items])).long() for name in items[0]}


def _arguments(run: Run, device: torch.device, output_dir: Path) -> TrainingArguments:
    params = run.params
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        num_train_epochs=1,
        learning_rate=params.learning_rate,
        weight_decay=params.weight_decay,
        train_sampling_strategy="sequential",
        max_grad_norm=1.0,
        optim="adamw_torch",
        seed=params.seed % 2**32,
        use_cpu=device.type == "cpu",
        bf16=device.type == "cuda",
        dataloader_pin_memory=device.type == "cuda",
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        ddp_find_unused_parameters=False,
        **_batching(run.shape, params.num_workers),  # type: ignore[arg-type]
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # or Trainer would spread each batch over every GPU that the process can see
    return arguments


def _batching(shape: Shape, num_workers: int) -> dict[str, int]:
    """A worker's part of a step, in equal parts that are computed one after the other."""
    of_worker = shape.batch_size // num_workers
    at_once = max(_TOKENS_AT_ONCE // shape.sequence_length, 1)
    size = max(size for size in range(1, of_worker + 1) if of_worker % size == 0 and size <= at_once)
    return {"per_device_train_batch_size": size, "gradient_accumulation_steps": of_worker // size}


def _step_seed(seed: int, step: int, worker: int) -> int:
    digest = hashlib.sha256(f"dropout {seed} {step} {worker}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
