"""One training from the documents to the published adapter, in the thread that calls. Blocks as long as it takes."""

import hashlib
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from deployments.chat_template import ChatTemplate
from deployments.checkpoints.artifacts import ArtifactStore, Published
from deployments.config import TrainerConfig
from deployments.errors import CorruptObject, ObjectNotFound, TrainingFailed
from deployments.fine_tune.checkpoint import read_state
from deployments.fine_tune.dataset import (
    Limits,
    Rows,
    Tokens,
    make_rows,
    read_documents,
    render_none,
    split_off,
    tokenize,
)
from deployments.fine_tune.learned_text import Render
from deployments.fine_tune.lora import attach_adapter, load_base, write_adapter
from deployments.fine_tune.packed_model import PackedModel
from deployments.fine_tune.shape import Shape, choose_batch_size, choose_sequence_length, round_up
from deployments.fine_tune.trainer import AdapterTrainer, Run
from deployments.fine_tune.watch import Watch
from deployments.model_files import ModelFiles, read_model_files
from deployments.model_tokenizer import load_tokenizer
from deployments.training import Finished, Started, TrainingEvent, TrainingParams, TrainingRequest

logger = logging.getLogger(__name__)

MAX_DATA_BYTES = 2**30

# transformers and accelerate keep state for the whole process, and torch its random numbers.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True, slots=True)
class Workplace:
    """What a training works with. directory: of the base model. context_length: the most tokens of a sequence; None:
    what the model was made for. document_start: see ModelConfig."""

    directory: Path
    artifacts: ArtifactStore
    config: TrainerConfig
    emit: Callable[[TrainingEvent], None]
    watch: Watch
    context_length: int | None = None
    document_start: str | None = None


def train_adapter(request: TrainingRequest, work: Workplace) -> None:
    """Emits what happens, at the end `Finished`. One training of a process at a time: others wait.

    A checkpoint that is gone, damaged or of another training is not used: it begins again then, and ends the same.
    Raises Stopped when told to stop, InvalidTrainingData, TrainingFailed, ObjectStoreError, and OSError or ValueError
    where the model cannot be loaded.
    """
    began = time.monotonic()
    while not _ONE_AT_A_TIME.acquire(timeout=1.0):
        work.watch.tick()
    try:
        with tempfile.TemporaryDirectory(prefix="tritext-training-") as directory:
            _train(request, work, Path(directory), began)
    finally:
        _ONE_AT_A_TIME.release()


def _train(request: TrainingRequest, work: Workplace, directory: Path, began: float) -> None:
    give_way(work.config)
    device = choose_device(work.config)
    files = read_model_files(work.directory, document_start=work.document_start)
    documents, held_out = _read_documents(request, work, files)
    work.watch.tick()
    adapted = attach_adapter(load_base(work.directory, device), request.params)
    work.watch.tick()
    context_length = min(work.context_length or files.context_length, files.context_length)
    length = _sequence_length(documents, request.params, context_length)
    model = PackedModel(adapted, longest=length)
    work.watch.tick()
    rows, validation, shape = _arrange(documents, held_out, request.params, length, together=model.together)
    run = Run(
        run=_name_of(request, rows, shape),
        params=request.params,
        shape=shape,
        rows=rows,
        validation=validation,
        checkpoint_every_steps=work.config.checkpoint_every_steps,
        emit=work.emit,
        save=lambda files, step: _publish(request, work, files, kind="checkpoint", step=step).digest,
        watch=work.watch,
    )
    trainer = AdapterTrainer(model, run, device=device, output_dir=directory)
    start = _fetch_checkpoint(request, work, directory / "checkpoint", run.run)
    trainer.tell(
        Started(
            0 if start is None else read_state(start).step,
            shape.total_steps,
            num_documents=rows.num_documents,
            num_tokens=rows.num_tokens,
            batch_size=shape.batch_size,
            sequence_length=shape.sequence_length,
        )
    )
    trainer.go(start)
    if not trainer.is_world_process_zero():
        return
    published = _publish(request, work, write_adapter(adapted, directory), kind="adapter", step=shape.total_steps)
    tokens = trainer.tokens(shape.total_steps)
    work.emit(Finished(published.digest, published.num_bytes, tokens, time.monotonic() - began))


def give_way(config: TrainerConfig) -> None:
    """Lowers the priority of this thread, and of those that it starts, and bounds how many compute.

    On Linux priorities are those of threads, so whatever else the process does is not slowed down.
    """
    lowered = max(config.niceness, os.getpriority(os.PRIO_PROCESS, 0))
    os.setpriority(os.PRIO_PROCESS, 0, lowered)
    if config.scheduling == "idle" and hasattr(os, "SCHED_IDLE"):
        # One that is only nicer ends its turn before an engine's thread that wakes has its own, for which others wait.
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    if config.num_threads:
        torch.set_num_threads(config.num_threads)


def choose_device(config: TrainerConfig) -> torch.device:
    """`auto` takes a GPU where one is reserved: Ray hides none, and a free one may be a generator's."""
    is_wanted = config.device == "cuda" or (config.device == "auto" and config.num_gpus > 0)
    if not is_wanted or not torch.cuda.is_available():
        return torch.device("cpu" if config.device == "auto" else config.device)
    if 0 < config.num_gpus < 1:
        torch.cuda.set_per_process_memory_fraction(config.num_gpus)
    return torch.device("cuda")


def _read_documents(
    request: TrainingRequest, work: Workplace, files: ModelFiles
) -> tuple[Sequence[Tokens], Sequence[Tokens]]:
    """Tokens of the documents to train on, and of those to validate with, if any."""
    tokenizer = load_tokenizer(work.directory)
    render: Render = render_none
    if files.chat_template is not None:
        render = ChatTemplate(files.chat_template, files.special_tokens).render

    def tokens(digest: str, param: str) -> list[Tokens]:
        try:
            data = work.artifacts.read_blob(digest, max_bytes=MAX_DATA_BYTES)
        except (ObjectNotFound, CorruptObject) as error:
            raise TrainingFailed(f"the data cannot be read: {error.message}") from error
        work.watch.tick()
        documents = read_documents(data, param)
        return tokenize(
            documents,
            tokenizer,
            Limits.of(files),
            vocab_size=files.vocab_size,
            param=param,
            render=render,
            tick=work.watch.tick,
        )

    documents = tokens(request.training_data, "training_data")
    if request.validation_data is not None:
        return documents, tokens(request.validation_data, "validation_data")
    return split_off(documents, request.params.validation_split, request.params.seed)


def _sequence_length(documents: Sequence[Tokens], params: TrainingParams, context_length: int) -> int:
    longest = max(len(tokens) for tokens in documents) - 1
    return min(params.sequence_length or choose_sequence_length(longest, context_length), context_length)


def _arrange(
    documents: Sequence[Tokens], held_out: Sequence[Tokens], params: TrainingParams, length: int, *, together: bool
) -> tuple[Rows, Rows | None, Shape]:
    rows = make_rows(documents, length, together=together)
    batch_size = params.batch_size or choose_batch_size(len(rows), length)
    shape = Shape(length, round_up(batch_size, params.num_workers), len(rows), params.epochs)
    return rows, make_rows(held_out, length, together=together) if held_out else None, shape


def _name_of(request: TrainingRequest, rows: Rows, shape: Shape) -> str:
    """Differs between trainings that would not end with the same adapter."""
    what = [request.base_model, asdict(request.params), asdict(shape), rows.digest]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _fetch_checkpoint(request: TrainingRequest, work: Workplace, directory: Path, run: str) -> Path | None:
    if request.checkpoint is None:
        return None
    try:
        work.artifacts.fetch(request.checkpoint, directory)
        if read_state(directory).run != run:
            raise ValueError("it is of another training")
    except (ObjectNotFound, CorruptObject, ValueError) as error:
        logger.warning(
            "%s begins again: its checkpoint %s cannot be used: %s", request.job_id, request.checkpoint, error
        )
        return None
    return directory


def _publish(request: TrainingRequest, work: Workplace, files: Sequence[Path], *, kind: str, step: int) -> Published:
    about: dict[str, Any] = {
        "kind": kind,
        "account": request.account,
        "job": request.job_id,
        "fence": request.fence,
        "model": request.model_id,
        "base_model": request.base_model,
        "step": step,
        "params": asdict(request.params),
    }
    return work.artifacts.publish({path.name: path for path in files}, about)
