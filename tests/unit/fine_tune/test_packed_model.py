"""Documents in one sequence do not see each other, whatever the architecture; where they would, each has its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deployments.fine_tune.dataset import IGNORED, make_rows
from deployments.fine_tune.lora import attach_adapter, load_base
from deployments.fine_tune.packed_attention import document_lengths
from deployments.fine_tune.packed_model import PackedModel
from deployments.training import TrainingParams
from tests.factories import Architecture
from tests.unit.engine.adapters import PEFT_WARNING
from tests.unit.fine_tune.runs import learned

pytestmark = pytest.mark.filterwarnings(PEFT_WARNING)

ARCHITECTURES: tuple[Architecture, ...] = ("llama", "gpt2", "qwen2", "mistral", "gemma2")


def documents(seed: int = 0) -> list[np.ndarray[Any, np.dtype[np.int32]]]:
    random = np.random.default_rng(seed)
    return [random.integers(3, 384, size, dtype=np.int32) for size in (70, 41, 9, 2, 33, 128)]


def as_tensors(rows: Any) -> dict[str, Tensor]:
    names = {"input_ids": rows.token_ids, "position_ids": rows.positions, "labels": rows.labels}
    return {name: torch.from_numpy(array).long() for name, array in names.items()}


def load(directory: Path) -> Any:
    return load_base(directory, torch.device("cpu")).eval()


@pytest.mark.parametrize("longest", [128, 16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_documents_have_the_logits_that_they_have_alone(
    architecture: Architecture, longest: int, tiny: Callable[[Architecture], Path]
) -> None:
    model, plain = load(tiny(architecture)), load(tiny(architecture))
    packed = PackedModel(model, longest=longest)
    assert packed.together
    some = [tokens for tokens in documents() if len(tokens) <= longest + 1]
    inputs = as_tensors(make_rows([learned(tokens) for tokens in some], longest))
    assert (inputs["position_ids"] == 0).sum() > len(inputs["input_ids"])  # several documents in a row
    options = {"lengths": document_lengths(inputs["position_ids"])} if packed._has_packed_attention else {}

    with torch.no_grad():
        logits = model(
            input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], use_cache=False, **options
        ).logits
        for tokens in some:
            ids = torch.from_numpy(tokens).long()[:-1]
            [(row, start)] = [
                (row, start)
                for row, line in enumerate(inputs["input_ids"])
                for start in range(len(line))
                if inputs["position_ids"][row, start] == 0 and torch.equal(line[start : start + len(ids)], ids)
            ]
            alone = plain(input_ids=ids[None], use_cache=False).logits[0]
            torch.testing.assert_close(logits[row, start : start + len(ids)], alone, rtol=1e-4, atol=1e-4)


def test_which_models_get_the_attention_that_is_faster(tiny: Callable[[Architecture], Path]) -> None:
    # mistral's window is of 24 tokens; gemma2 caps its scores.
    found = {
        (name, longest): PackedModel(load(tiny(name)), longest=longest)._has_packed_attention
        for name in ARCHITECTURES
        for longest in (128, 16)
    }

    assert {case for case, has in found.items() if not has} == {("mistral", 128), ("gemma2", 128), ("gemma2", 16)}


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=4))
def test_lengths_are_those_between_the_beginnings(rows: list[list[int]]) -> None:
    width = max(map(sum, rows))
    filled = [[*lengths, *([width - sum(lengths)] if sum(lengths) < width else [])] for lengths in rows]
    positions = torch.tensor([[place for length in lengths for place in range(length)] for lengths in filled])

    assert document_lengths(positions) == [length for lengths in filled for length in lengths]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_its_gradient_are_those_of_the_mean_over_all_tokens(
    architecture: Architecture, tiny: Callable[[Architecture], Path]
) -> None:
    params = TrainingParams(rank=4)
    plain = attach_adapter(load(tiny(architecture)), params).eval()
    packed = PackedModel(attach_adapter(load(tiny(architecture)), params), longest=128).eval()
    inputs = as_tensors(make_rows([learned(tokens) for tokens in documents()], 128))
    total = (inputs["labels"] != IGNORED).sum()

    expected = sum(
        plain(input_ids=ids, labels=ids, use_cache=False).loss * (len(tokens) - 1) / total
        for tokens in documents()
        for ids in [torch.from_numpy(tokens).long()[None]]
    )
    expected.backward()
    halves = [
        packed(**{name: tensor[part] for name, tensor in inputs.items()}, num_items_in_batch=total)["loss"]
        for part in (slice(0, 1), slice(1, None))
    ]
    sum(halves).backward()

    torch.testing.assert_close(packed(**inputs)["loss"], expected)
    torch.testing.assert_close(sum(halves), expected)
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters() if parameter.requires_grad}
    assert gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(packed.model.get_parameter(name).grad, gradient, rtol=1e-3, atol=1e-5)


def test_models_that_see_their_neighbours_get_rows_of_their_own() -> None:
    config = transformers.BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4)
    model: Any = transformers.BloomForCausalLM(config).eval()

    packed = PackedModel(model, longest=16)

    assert not packed.together
    rows = make_rows([learned(np.arange(5)), learned(np.arange(9))], 16, together=False)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        loss = packed(**{name: tensor[1:] for name, tensor in as_tensors(rows).items()})["loss"]
        torch.testing.assert_close(loss, model(input_ids=ids, labels=ids).loss)


def test_a_cap_on_the_logits_is_not_left_out(tiny: Callable[[Architecture], Path]) -> None:
    assert not PackedModel(load(tiny("gemma2")), longest=9)._has_plain_head
    assert PackedModel(load(tiny("llama")), longest=9)._has_plain_head
