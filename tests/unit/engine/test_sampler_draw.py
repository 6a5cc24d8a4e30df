"""Truncation and the draw. A grid of uniform numbers through the draw reads off the whole distribution, almost exactly:
a token of probability p takes p * N of N evenly spaced numbers, give or take one."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from deployments.engine.sampling.draw import draw_tokens
from deployments.types import SamplingParams

GRID = 2000

seeds = st.integers(0, 2**32)


def random_logits(seed: int, vocab_size: int, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def draw(logits: torch.Tensor, params: SamplingParams, uniforms: torch.Tensor) -> torch.Tensor:
    rows = logits.expand(len(uniforms), -1)
    return draw_tokens(rows, rows.amax(1), [params] * len(uniforms), uniforms.double())


def distribution(logits: torch.Tensor, params: SamplingParams, grid: int = GRID) -> torch.Tensor:
    tokens = draw(logits, params, (torch.arange(grid) + 0.5) / grid)
    return torch.bincount(tokens, minlength=len(logits)).double() / grid


def assert_distribution(logits: torch.Tensor, params: SamplingParams, expected: torch.Tensor, grid: int = GRID) -> None:
    found = distribution(logits, params, grid)
    assert not found[expected == 0].any()
    torch.testing.assert_close(found, expected, rtol=0, atol=1.01 / grid)


def of_transformers(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    warpers = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k > 0:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.min_p > 0:
        warpers.append(MinPLogitsWarper(params.min_p))
    return warpers(torch.zeros(1, 1, dtype=torch.int64), logits.unsqueeze(0))[0].softmax(-1)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.5),
        SamplingParams(temperature=3.0),
        SamplingParams(top_k=1),
        SamplingParams(top_k=7),
        SamplingParams(top_k=300),
        SamplingParams(top_p=0.01),
        SamplingParams(top_p=0.6),
        SamplingParams(top_p=0.999),
        SamplingParams(min_p=0.1),
        SamplingParams(min_p=1.0),
        SamplingParams(temperature=0.7, top_k=20, top_p=0.8, min_p=0.05),
        SamplingParams(temperature=1.5, top_k=280, top_p=0.9, min_p=0.001),
        SamplingParams(temperature=20.0, top_p=0.95),
    ],
    ids=lambda p: f"t{p.temperature}-k{p.top_k}-p{p.top_p}-m{p.min_p}",
)
@pytest.mark.parametrize("vocab_size", [50, 700, 20_000])
def test_the_distribution_is_that_of_transformers(params, vocab_size):
    logits = random_logits(vocab_size, vocab_size)
    grid = 200 if vocab_size > 1000 else GRID
    assert_distribution(logits, params, of_transformers(logits, params), grid)


@settings(deadline=None, max_examples=60)
@given(
    seeds,
    st.integers(1, 400),
    st.floats(0.1, 10),
    st.integers(0, 400),
    st.floats(0.001, 1),
    st.sampled_from([0.0, 0.01, 0.3]),
)
def test_every_combination_gives_the_distribution_of_transformers(seed, vocab_size, temperature, top_k, top_p, min_p):
    logits = random_logits(seed, vocab_size)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    assert_distribution(logits, params, of_transformers(logits, params))


def test_ties_at_the_top_k_threshold_are_all_kept():
    logits = torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0, 0.0], dtype=torch.float64)
    weights = logits.exp().where(logits >= 2.0, 0.0)
    assert_distribution(logits, SamplingParams(top_k=2), weights / weights.sum())


def test_top_k_keeps_ties_that_lie_beyond_every_cheap_candidate():
    logits = torch.zeros(1000, dtype=torch.float64)
    assert_distribution(logits, SamplingParams(top_k=3), torch.full((1000,), 1 / 1000).double(), 1000)


def test_top_p_breaks_ties_by_the_lower_token_id():
    logits = torch.zeros(1000, dtype=torch.float64)
    found = distribution(logits, SamplingParams(top_p=0.5005), 1000)
    assert found[:501].gt(0).sum() >= 499
    assert not found[501:].any()


def test_top_p_is_taken_of_what_top_k_left():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
    # Of the two likeliest the first has 0.571; of all it has 0.4.
    assert_distribution(logits, SamplingParams(top_k=2, top_p=0.5), torch.tensor([1.0, 0, 0, 0]).double())
    assert_distribution(logits, SamplingParams(top_p=0.5), torch.tensor([4 / 7, 3 / 7, 0, 0]).double())


@pytest.mark.parametrize("kept", [[17, 255], [417, 655]], ids=["in the first block", "after banned blocks"])
def test_banned_tokens_are_never_drawn(kept):
    logits = torch.full((1000,), -torch.inf, dtype=torch.float64)
    logits[kept] = 0.0
    for params in (
        SamplingParams(),
        SamplingParams(top_k=5),
        SamplingParams(top_k=280),
        SamplingParams(top_p=0.9),
        SamplingParams(temperature=100.0, min_p=0.2),
    ):
        found = draw(logits, params, torch.tensor([0.0, 0.25, 0.5, 1 - 2**-53], dtype=torch.float64))
        assert found.tolist() == [kept[0], kept[0], kept[1], kept[1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [5e-324, 1e-30, 0.001, 100.0, 1e300])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e30])
def test_extreme_temperatures_give_a_distribution(temperature, scale, dtype):
    logits = torch.tensor([3.0, -torch.inf, 1.0, 2.0], dtype=dtype) * scale
    found = draw(logits, SamplingParams(temperature=temperature), torch.linspace(0, 0.999, 1001)).tolist()
    assert 1 not in found
    if temperature == 1e300 and scale == 1.0:
        assert all(abs(found.count(token_id) - 1001 / 3) < 2 for token_id in (0, 2, 3))
    if temperature <= 0.001 and scale == 1.0:
        assert set(found) == {0}


@settings(deadline=None)
@given(seeds, st.integers(1, 3000), st.floats(0, 1, exclude_max=True), st.sampled_from([0, 40]))
def test_the_token_is_the_inverse_of_the_cumulative_distribution_in_vocabulary_order(seed, vocab_size, uniform, top_k):
    logits = random_logits(seed, vocab_size)
    params = SamplingParams(top_k=top_k)
    found = int(draw(logits, params, torch.tensor([uniform], dtype=torch.float64)))
    cumulative = of_transformers(logits, params).cumsum(0)
    assume(float((cumulative - uniform).abs().min()) > 1e-12)
    assert found == int(torch.searchsorted(cumulative, uniform, right=True))


MIXTURE = [
    SamplingParams(),
    SamplingParams(temperature=0.3),
    SamplingParams(temperature=100.0, top_p=0.97),
    SamplingParams(top_k=5),
    SamplingParams(top_k=600, top_p=0.9),
    SamplingParams(top_p=0.4),
    SamplingParams(top_p=0.9999, min_p=1e-6),
    SamplingParams(min_p=0.02),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("vocab_size", [333, 4096, 50_257])
def test_a_row_gives_the_same_token_alone_and_in_any_batch(vocab_size, dtype):
    generator = torch.Generator().manual_seed(vocab_size)
    params = MIXTURE * 5
    logits = torch.randn(len(params), vocab_size, generator=generator).to(dtype)
    uniforms = torch.rand(len(params), generator=generator, dtype=torch.float64)
    together = draw_tokens(logits, logits.amax(1), params, uniforms).tolist()
    for row in range(len(params)):
        one = slice(row, row + 1)
        assert draw_tokens(logits[one], logits[one].amax(1), params[one], uniforms[one]).item() == together[row]
    for _ in range(5):
        rows = torch.randperm(len(params), generator=generator)[: int(torch.randint(2, 30, (), generator=generator))]
        found = draw_tokens(logits[rows], logits[rows].amax(1), [params[row] for row in rows], uniforms[rows])
        assert found.tolist() == [together[row] for row in rows]


def test_borders_between_tokens_are_bit_equal_in_any_batch():
    """The number just below a border and the border itself: a difference of one bit in any reduction would show."""
    vocab_size = 50_257
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, vocab_size, generator=generator)
    params = [SamplingParams(temperature=0.9) if row % 2 else SamplingParams(top_p=0.8) for row in range(12)]

    def border(row: int, low: float = 0.2, high: float = 0.8) -> tuple[float, float]:
        one = slice(row, row + 1)

        def token_at(uniform: float) -> int:
            numbers = torch.tensor([uniform], dtype=torch.float64)
            return int(draw_tokens(logits[one], logits[one].amax(1), params[one], numbers))

        lowest = token_at(low)
        while math.nextafter(low, high) < high:
            middle = (low + high) / 2
            low, high = (middle, high) if token_at(middle) == lowest else (low, middle)
        return low, high

    borders = torch.tensor([border(row) for row in range(12)], dtype=torch.float64)
    below = draw_tokens(logits, logits.amax(1), params, borders[:, 0])
    above = draw_tokens(logits, logits.amax(1), params, borders[:, 1])
    assert (below != above).all()
    for row in range(12):
        one = slice(row, row + 1)
        assert draw_tokens(logits[one], logits[one].amax(1), params[one], borders[one, 0]).item() == below[row]
        assert draw_tokens(logits[one], logits[one].amax(1), params[one], borders[one, 1]).item() == above[row]
