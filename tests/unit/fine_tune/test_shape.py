"""How long sequences are and how many make a step: little data still gives several steps, much data no tiny ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.fine_tune.shape import (
    LONGEST,
    SHORTEST,
    STEPS_OF_EPOCH,
    TOKENS_OF_STEP,
    Shape,
    checkpoint_interval,
    choose_batch_size,
    choose_sequence_length,
    round_up,
)


@pytest.mark.parametrize(
    ("longest", "context", "expected"),
    [(5, 8192, 128), (128, 8192, 128), (129, 8192, 256), (700, 8192, 1024), (10**6, 8192, 1024), (700, 512, 512)],
)
def test_sequence_length(longest: int, context: int, expected: int) -> None:
    assert choose_sequence_length(longest, context) == expected


@given(st.integers(1, 10**5), st.integers(SHORTEST, LONGEST))
def test_batch_size_leaves_steps_and_bounds_them(num_rows: int, length: int) -> None:
    batch_size = choose_batch_size(num_rows, length)

    assert batch_size == 1 or num_rows // batch_size >= STEPS_OF_EPOCH
    assert batch_size * length <= max(TOKENS_OF_STEP, length)
    assert batch_size * 2 * length > TOKENS_OF_STEP or num_rows // (batch_size * 2) < STEPS_OF_EPOCH


@pytest.mark.parametrize(
    ("total_steps", "at_least", "expected"), [(10, 50, 50), (5000, 50, 50), (5001, 50, 51), (25_000_000, 50, 250_000)]
)
def test_no_training_saves_more_than_a_hundred_times(total_steps: int, at_least: int, expected: int) -> None:
    assert checkpoint_interval(total_steps, at_least) == expected


def test_workers_have_equal_parts() -> None:
    assert [round_up(size, 4) for size in (1, 4, 5)] == [4, 4, 8]


@given(st.integers(1, 50), st.integers(1, 60), st.integers(1, 6))
def test_passes_end_once_each_within_the_steps(num_rows: int, batch_size: int, epochs: int) -> None:
    shape = Shape(128, batch_size, num_rows, epochs)
    ends = [step for step in range(1, shape.total_steps + 1) if shape.ends_epoch(step)]

    assert shape.epoch(0) == 0
    assert shape.epoch(shape.total_steps) == epochs
    assert (shape.total_steps - 1) * batch_size < num_rows * epochs <= shape.total_steps * batch_size
    assert ends[-1] == shape.total_steps
    assert len(ends) == (epochs if batch_size <= num_rows else shape.total_steps)
