"""The native kernels against the same arithmetic in torch, and against their promise: same bits in any company."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from deployments.engine.native.architecture import read_architecture
from deployments.engine.native.native_runner import NativeRunner
from deployments.engine.native.reference import reference_logits
from deployments.engine.scheduler import Batch, ScheduledSequence
from deployments.engine.sequence import Sequence

from .models import logits_in_one_step, make_runner, make_sequence, quantized, token_ids, write_model
from .oracle import quantized_logits

LENGTH = 75

SHAPES: dict[str, dict[str, Any]] = {
    "grouped heads": {},
    "one query head for each key head": {"num_key_value_heads": 4},
    "three query heads for each key head": {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 144},
    "four query heads for one key head": {"num_key_value_heads": 1},
    "more query heads than a tile": {"num_attention_heads": 14, "num_key_value_heads": 1},
    "head of 32": {"head_dim": 32},
    "head of 64": {"head_dim": 64},
    "head of 80": {"head_dim": 80, "num_attention_heads": 2},
    "head of 128": {"head_dim": 128, "num_attention_heads": 2, "num_key_value_heads": 1},
    "nothing even": {"hidden_size": 100, "intermediate_size": 100, "vocab_size": 49},
    "one block of words": {"vocab_size": 48},
    "untied": {"tie_word_embeddings": False},
    "biases": {"model_type": "qwen2"},
    "llama 3 rope": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_kernels_compute_the_quantized_model(shape: dict[str, Any], tmp_path: Path, kernel_cache: Path) -> None:
    directory = write_model(tmp_path, **shape)
    architecture = read_architecture(directory)
    tokens = token_ids(3, LENGTH, architecture.vocab_size)

    logits = logits_in_one_step(make_runner(directory, kernel_cache, num_threads=2), tokens)

    expected = quantized_logits(architecture, quantized(directory), tokens)
    # A value at the edge between two integers may be rounded the other way, and all later positions see it.
    difference = (logits - expected).abs().amax(1) / expected.std()
    assert (difference < 1e-4).sum() >= 3
    assert difference.max() < 0.1


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_quantized_model_is_close_to_float32(shape: dict[str, Any], tmp_path: Path, kernel_cache: Path) -> None:
    directory = write_model(tmp_path, **shape)
    architecture = read_architecture(directory)
    tokens = token_ids(4, LENGTH, architecture.vocab_size)

    logits = logits_in_one_step(make_runner(directory, kernel_cache), tokens)

    expected = reference_logits(directory, architecture, [tokens])[0]
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
def alone(runners: dict[int, NativeRunner]) -> list[tuple[list[int], Tensor]]:
    """Sequences of several lengths, with their logits, each computed alone, in one step and on one thread."""
    lengths = (1, 2, 15, 16, 17, 31, 32, 33, 48, 64, 100, 130)
    made = [token_ids(100 + length, length, runners[1].vocab_size) for length in lengths]
    return [(tokens, logits_in_one_step(runners[1], tokens)) for tokens in made]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_logits_are_the_same_bits_in_any_batch_and_any_pieces(
    data: st.DataObject, runners: dict[int, NativeRunner], alone: list[tuple[list[int], Tensor]]
) -> None:
    runner = runners[data.draw(st.sampled_from(sorted(runners)), label="threads")]
    chosen = data.draw(st.lists(st.sampled_from(range(len(alone))), min_size=1, max_size=9), label="sequences")
    free = data.draw(st.permutations(range(9 * 9)), label="blocks")
    going = []
    for key, index in enumerate(chosen):
        tokens, expected = alone[index]
        blocks = [free.pop() for _ in range(-(-len(tokens) // 16))]
        going.append(Progress(make_sequence(tokens, blocks, key=key), expected))
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


def test_only_the_wanted_logits_are_returned(
    runners: dict[int, NativeRunner], alone: list[tuple[list[int], Tensor]]
) -> None:
    (short, of_short), (long, of_long) = alone[3], alone[-1]
    first = make_sequence(short, [0, 1], all_logits=False)
    second = make_sequence(long, list(range(2, 11)), all_logits=False)

    unfinished = runners[2].run(Batch((ScheduledSequence(second, 0, 100),)))
    rest = runners[2].run(Batch((ScheduledSequence(second, 100, len(long)), ScheduledSequence(first, 0, len(short)))))

    assert unfinished.shape == (0, runners[2].vocab_size)
    assert torch.equal(rest, torch.stack([of_long[-1], of_short[-1]]))


def test_what_the_cache_held_before_does_not_matter(tiny_model: Path, kernel_cache: Path) -> None:
    runner = make_runner(tiny_model, kernel_cache)
    tokens = token_ids(5, 37, runner.vocab_size)
    clean = logits_in_one_step(runner, tokens)
    soiled = np.frombuffer(runner._cache.base, np.float16)
    soiled[:] = np.nan

    assert torch.equal(logits_in_one_step(runner, tokens), clean)
    assert torch.equal(logits_in_one_step(runner, tokens, first_block=40), clean)


def test_blocks_of_several_pages(tiny_model: Path, kernel_cache: Path) -> None:
    tokens = token_ids(6, 90, 101)
    expected = logits_in_one_step(make_runner(tiny_model, kernel_cache), tokens)

    runner = make_runner(tiny_model, kernel_cache, block_size=48)
    sequence = make_sequence(tokens, [7, 2])

    assert torch.equal(runner.run(Batch((ScheduledSequence(sequence, 0, 90),))), expected)


def test_the_cache_fills_the_configured_bytes(tiny_model: Path, kernel_cache: Path) -> None:
    runner = make_runner(tiny_model, kernel_cache)
    bytes_per_block = 16 * 2 * 2 * 2 * 16 * 2  # tokens, keys and values, layers, heads, head size, float16

    assert runner.num_blocks == 4 * 1024 * 1024 // bytes_per_block
    assert runner._cache.nbytes == runner.num_blocks * bytes_per_block


def test_the_last_block_can_be_used(tiny_model: Path, kernel_cache: Path) -> None:
    runner = make_runner(tiny_model, kernel_cache)
    tokens = token_ids(8, 16, runner.vocab_size)

    last = logits_in_one_step(runner, tokens, first_block=runner.num_blocks - 1)

    assert torch.equal(last, logits_in_one_step(runner, tokens))


@pytest.mark.parametrize(
    ("tokens", "blocks"), [([101], [0]), ([-1], [0]), ([5], [-1]), ([5], [100_000]), ([5] * 17, [0])]
)
def test_tokens_and_blocks_that_do_not_exist_are_refused(
    tokens: list[int], blocks: list[int], tiny_model: Path, kernel_cache: Path
) -> None:
    runner = make_runner(tiny_model, kernel_cache)
    sequence = make_sequence(tokens, blocks)

    with pytest.raises(ValueError, match="does not have"):
        runner.run(Batch((ScheduledSequence(sequence, 0, len(tokens)),)))


def test_an_empty_batch_has_no_logits(tiny_model: Path, kernel_cache: Path) -> None:
    assert make_runner(tiny_model, kernel_cache).run(Batch(())).shape == (0, 101)
