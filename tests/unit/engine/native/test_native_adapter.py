"""Adapters on the native kernels: close to the merged model, the same bits in any company, nothing to those without."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from deployments.engine.native.architecture import read_architecture
from deployments.engine.native.native_adapter import NativeAdapter, linears
from deployments.engine.native.native_runner import NativeRunner
from deployments.engine.native.reference import reference_logits
from deployments.engine.protocol import LoadedAdapter, LowRankPair
from deployments.engine.scheduler import Batch, ScheduledSequence
from deployments.engine.sequence import Sequence
from deployments.errors import InvalidAdapter
from tests.unit.engine.adapters import make_adapter

from .models import logits_in_one_step, make_runner, make_sequence, token_ids, write_model
from .test_kernels import SHAPES

LENGTH = 60
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def logits_with(runner: NativeRunner, adapter: NativeAdapter | None, tokens: list[int]) -> Tensor:
    """The logits of all positions of one sequence, computed alone."""
    sequence = make_sequence(tokens, list(range(-(-len(tokens) // 16))))
    sequence.adapter = adapter
    return runner.run(Batch((ScheduledSequence(sequence, 0, len(tokens)),)))


def merged_logits(directory: Path, adapter: LoadedAdapter, tokens: list[int]) -> Tensor:
    """What the float32 model gives with the adapter added to its weights."""
    merged = directory.with_name(f"{directory.name}-{adapter.ref.digest}")
    merged.mkdir(exist_ok=True)
    (merged / "config.json").write_text((directory / "config.json").read_text())
    weights = load_file(directory / "model.safetensors")
    for path, pair in adapter.pairs.items():
        weights[f"{path}.weight"] += torch.from_numpy(pair.b @ pair.a)
    save_file(weights, merged / "model.safetensors")
    return reference_logits(merged, read_architecture(merged), [tokens])[0]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_adapted_model_is_close_to_the_merged_one_in_float32(
    shape: dict[str, Any], tmp_path: Path, kernel_cache: Path
) -> None:
    directory = write_model(tmp_path / "model", **shape)
    architecture = read_architecture(directory)
    runner = make_runner(directory, kernel_cache, num_threads=2)
    tokens = token_ids(4, LENGTH, architecture.vocab_size)
    adapter = make_adapter(linears(architecture), rank=5)

    logits = logits_with(runner, runner.prepare_adapter(adapter), tokens)

    expected = merged_logits(directory, adapter, tokens)
    assert (logits - expected).square().mean().sqrt() < 0.05 * expected.std()
    # The adapter is no trifle: without it, the logits are others.
    assert (logits_with(runner, None, tokens) - expected).square().mean().sqrt() > 0.3 * expected.std()


@pytest.mark.parametrize("target", [*ATTENTION, "gate_proj", "up_proj", "down_proj"])
def test_each_linear_can_be_the_only_one(target: str, tiny_model: Path, kernel_cache: Path) -> None:
    runner = make_runner(tiny_model, kernel_cache)
    tokens = token_ids(5, LENGTH, runner.vocab_size)
    adapter = make_adapter(linears(read_architecture(tiny_model)), rank=3, size=2.0, targets=(target,), digest=target)

    logits = logits_with(runner, runner.prepare_adapter(adapter), tokens)

    expected = merged_logits(tiny_model, adapter, tokens)
    difference = (logits - expected).square().mean().sqrt()
    assert difference < 0.05 * expected.std()
    assert difference < 0.2 * (logits_with(runner, None, tokens) - expected).square().mean().sqrt()


@pytest.mark.parametrize("rank", [1, 7, 8, 9, 64, 256])
def test_ranks(rank: int, tiny_model: Path, kernel_cache: Path) -> None:
    runner = make_runner(tiny_model, kernel_cache)
    tokens = token_ids(6, LENGTH, runner.vocab_size)
    adapter = make_adapter(linears(read_architecture(tiny_model)), rank=rank)

    logits = logits_with(runner, runner.prepare_adapter(adapter), tokens)

    expected = merged_logits(tiny_model, adapter, tokens)
    assert (logits - expected).square().mean().sqrt() < 0.05 * expected.std()


@dataclass
class Progress:
    """A sequence on its way, and the logits of its positions so far."""

    sequence: Sequence
    expected: Tensor
    done: int = 0
    logits: list[Tensor] = field(default_factory=list)


@pytest.fixture(scope="module")
def runners(tiny_model: Path, kernel_cache: Path) -> Iterator[dict[int, NativeRunner]]:
    yield {threads: make_runner(tiny_model, kernel_cache, num_threads=threads) for threads in (1, 2, 3)}


@pytest.fixture(scope="module")
def adapters(runners: dict[int, NativeRunner], tiny_model: Path) -> list[NativeAdapter | None]:
    shapes = linears(read_architecture(tiny_model))
    made = [
        make_adapter(shapes, rank=1, seed=1),
        make_adapter(shapes, rank=8, seed=2),
        make_adapter(shapes, rank=20, seed=3, targets=("q_proj", "v_proj")),
        make_adapter(shapes, rank=64, seed=4, targets=("up_proj", "down_proj")),
        make_adapter({path: shape for path, shape in shapes.items() if "layers.1" in path}, rank=12, seed=5),
    ]
    return [None, *(runners[1].prepare_adapter(adapter) for adapter in made)]


@pytest.fixture(scope="module")
def alone(
    runners: dict[int, NativeRunner], adapters: list[NativeAdapter | None]
) -> list[tuple[list[int], NativeAdapter | None, Tensor]]:
    """Sequences, some of the same tokens, with their adapter and their logits, each computed alone, on one thread."""
    made = [
        (token_ids(length, length, runners[1].vocab_size), adapter)
        for length in (1, 17, 48, 130)
        for adapter in adapters
    ]
    return [(tokens, adapter, logits_with(runners[1], adapter, tokens)) for tokens, adapter in made]


def test_no_adapter_is_like_another(alone: list[tuple[list[int], NativeAdapter | None, Tensor]]) -> None:
    of_one_prompt = [logits[-1] for tokens, _, logits in alone if len(tokens) == 17]
    assert len({tuple(logits.tolist()) for logits in of_one_prompt}) == len(of_one_prompt)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_logits_are_the_same_bits_whatever_adapters_stand_beside(
    data: st.DataObject,
    runners: dict[int, NativeRunner],
    alone: list[tuple[list[int], NativeAdapter | None, Tensor]],
) -> None:
    runner = runners[data.draw(st.sampled_from(sorted(runners)), label="threads")]
    chosen = data.draw(st.lists(st.sampled_from(range(len(alone))), min_size=1, max_size=9), label="sequences")
    free = data.draw(st.permutations(range(9 * 9)), label="blocks")
    going = []
    for key, index in enumerate(chosen):
        tokens, adapter, expected = alone[index]
        sequence = make_sequence(tokens, [free.pop() for _ in range(-(-len(tokens) // 16))], key=key)
        sequence.adapter = adapter
        going.append(Progress(sequence, expected))
    everyone = list(going)
    while going:
        some = [progress for progress in going if data.draw(st.booleans())] or going[:1]
        scheduled = []
        for progress in some:
            left = progress.sequence.num_tokens - progress.done
            size = min(left, data.draw(st.sampled_from([1, 1, 1, 2, 7, 16, 33, 200])))
            scheduled.append(ScheduledSequence(progress.sequence, progress.done, progress.done + size))
        rows = runner.run(Batch(tuple(scheduled))).split([item.num_logits for item in scheduled])
        for progress, item, logits in zip(some, scheduled, rows, strict=True):
            progress.logits.append(logits)
            progress.done = item.end
        going = [progress for progress in going if progress.done < progress.sequence.num_tokens]
    for progress in everyone:
        assert torch.equal(torch.cat(progress.logits), progress.expected)


def test_sequences_without_adapter_get_what_a_runner_without_adapters_gives(
    tiny_model: Path, kernel_cache: Path, alone: list[tuple[list[int], NativeAdapter | None, Tensor]]
) -> None:
    untouched = make_runner(tiny_model, kernel_cache)
    for tokens, adapter, logits in alone:
        if adapter is None:
            assert torch.equal(logits_in_one_step(untouched, tokens), logits)


def test_adapter_that_changes_nothing_changes_no_bit(tiny_model: Path, kernel_cache: Path) -> None:
    runner = make_runner(tiny_model, kernel_cache)
    tokens = token_ids(7, LENGTH, runner.vocab_size)
    zero = runner.prepare_adapter(make_adapter(linears(read_architecture(tiny_model)), size=0.0))

    assert torch.equal(logits_with(runner, zero, tokens), logits_with(runner, None, tokens))


def test_numbers_beyond_all_bounds_harm_only_their_own_sequence(tiny_model: Path, kernel_cache: Path) -> None:
    runner = make_runner(tiny_model, kernel_cache, num_threads=2)
    shapes = linears(read_architecture(tiny_model))
    tokens = token_ids(8, 20, runner.vocab_size)
    huge = LoadedAdapter(
        make_adapter(shapes).ref,
        {path: LowRankPair(pair.a * 1e18, pair.b * 1e18) for path, pair in make_adapter(shapes).pairs.items()},
    )
    first, second = make_sequence(tokens, [0, 1]), make_sequence(tokens, [2, 3], key=1)
    first.adapter = runner.prepare_adapter(huge)

    both = runner.run(Batch((ScheduledSequence(first, 0, 20), ScheduledSequence(second, 0, 20))))

    assert torch.equal(both[20:], logits_with(runner, None, tokens))
    assert not both[:20].isfinite().all()


def test_memory_is_that_of_packed_bytes(tiny_model: Path, kernel_cache: Path) -> None:
    runner = make_runner(tiny_model, kernel_cache)
    shapes = linears(read_architecture(tiny_model))
    parameters = sum(32 * (size_in + size_out) for size_out, size_in in shapes.values())

    prepared = runner.prepare_adapter(make_adapter(shapes, rank=32))

    assert parameters < prepared.num_bytes < 1.5 * parameters


@pytest.mark.parametrize("rank", [1, 7, 8, 9, 64])
@pytest.mark.parametrize("targets", [None, {"up_proj"}, {"q_proj", "down_proj"}])
def test_memory_is_known_before_it_is_needed(
    tiny_model: Path, kernel_cache: Path, rank: int, targets: set[str] | None
) -> None:
    runner = make_runner(tiny_model, kernel_cache)
    adapter = make_adapter(linears(read_architecture(tiny_model)), rank=rank, targets=targets)
    assert runner.adapter_bytes(adapter) == runner.prepare_adapter(adapter).num_bytes


def test_adapter_that_does_not_fit_is_refused(tiny_model: Path, kernel_cache: Path) -> None:
    runner = make_runner(tiny_model, kernel_cache)
    shapes = linears(read_architecture(tiny_model))

    for refuse in (runner.prepare_adapter, runner.adapter_bytes):
        with pytest.raises(InvalidAdapter, match="no linear"):
            refuse(make_adapter({"model.layers.2.mlp.up_proj": (160, 64)}))
        with pytest.raises(InvalidAdapter, match="is not"):
            refuse(make_adapter({"model.layers.1.mlp.up_proj": (160, 65)}))
        with pytest.raises(InvalidAdapter, match="rank 257"):
            refuse(make_adapter(shapes, rank=257))
    with pytest.raises(InvalidAdapter, match="too large"):
        pair = make_adapter(shapes).pairs["model.layers.0.mlp.down_proj"]
        too_large = {"model.layers.0.mlp.down_proj": LowRankPair(np.full_like(pair.a, 3e38), pair.b)}
        runner.prepare_adapter(LoadedAdapter(make_adapter(shapes).ref, too_large))
