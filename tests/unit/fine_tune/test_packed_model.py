"""Documents in one sequence do not see each other, whatever the architecture; where they would, each has its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from deployments.fine_tune.dataset import IGNORED, make_rows
from deployments.fine_tune.lora import load_base
from deployments.fine_tune.packed_model import PackedModel
from tests.factories import Architecture

# gpt2's attention asks for a mask when it sees its padding token, which here begins documents.
ARCHITECTURES = ("llama", "gpt2", "qwen2", "mistral", "gemma2")


def documents(seed: int = 0) -> list[np.ndarray[Any, np.dtype[np.int32]]]:
    random = np.random.default_rng(seed)
    return [random.integers(3, 384, size, dtype=np.int32) for size in (70, 41, 9, 2, 33, 128)]


def as_tensors(rows: Any) -> dict[str, Tensor]:
    names = {"input_ids": rows.token_ids, "position_ids": rows.positions, "labels": rows.labels}
    return {name: torch.from_numpy(array).long() for name, array in names.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_documents_have_the_logits_that_they_have_alone(
    architecture: Architecture, tiny: Callable[[Architecture], Path]
) -> None:
    model = load_base(tiny(architecture), torch.device("cpu")).eval()
    packed = PackedModel(model)
    assert packed.together
    inputs = as_tensors(make_rows(documents(), 128))
    assert (inputs["position_ids"] == 0).sum() > len(inputs["input_ids"])  # several documents in a row

    with torch.no_grad():
        logits = model(input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], use_cache=False).logits
        for tokens in documents():
            ids = torch.from_numpy(tokens).long()[:-1]
            [(row, start)] = [
                (row, start)
                for row, line in enumerate(inputs["input_ids"])
                for start in range(len(line))
                if inputs["position_ids"][row, start] == 0 and torch.equal(line[start : start + len(ids)], ids)
            ]
            alone = model(input_ids=ids[None], use_cache=False).logits[0]
            torch.testing.assert_close(logits[row, start : start + len(ids)], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_is_the_mean_over_all_tokens(architecture: Architecture, tiny: Callable[[Architecture], Path]) -> None:
    model = load_base(tiny(architecture), torch.device("cpu")).eval()
    inputs = as_tensors(make_rows(documents(), 128))
    sums = [
        model(input_ids=ids, labels=ids, use_cache=False).loss * (len(tokens) - 1)
        for tokens in documents()
        for ids in [torch.from_numpy(tokens).long()[None]]
    ]
    expected = torch.stack(sums).sum() / sum(len(tokens) - 1 for tokens in documents())

    with torch.no_grad():
        loss = PackedModel(model)(**inputs)["loss"]
        halves = [
            PackedModel(model)(**{name: tensor[part] for name, tensor in inputs.items()}, num_items_in_batch=total)
            for total in [(inputs["labels"] != IGNORED).sum()]
            for part in (slice(0, 1), slice(1, None))
        ]

    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(halves[0]["loss"] + halves[1]["loss"], expected.detach())


def test_models_that_see_their_neighbours_get_rows_of_their_own() -> None:
    config = transformers.BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4)
    model: Any = transformers.BloomForCausalLM(config).eval()

    packed = PackedModel(model)

    assert not packed.together
    rows = make_rows([np.arange(5, dtype=np.int32), np.arange(9, dtype=np.int32)], 16, together=False)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        loss = packed(**{name: tensor[1:] for name, tensor in as_tensors(rows).items()})["loss"]
        torch.testing.assert_close(loss, model(input_ids=ids, labels=ids).loss)


def test_a_cap_on_the_logits_is_not_left_out(tiny: Callable[[Architecture], Path]) -> None:
    assert not PackedModel(load_base(tiny("gemma2"), torch.device("cpu")))._has_plain_head
    assert PackedModel(load_base(tiny("llama"), torch.device("cpu")))._has_plain_head
