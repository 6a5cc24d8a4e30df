"""The native draw against the torch sampler's: the same tokens kept, the same one drawn."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deployments.engine.native.build import load_kernels
from deployments.engine.native.native_draw import NativeDraw
from deployments.engine.sampling.draw import draw_tokens
from deployments.engine.sampling.ranking import row_maxima
from deployments.types import SamplingParams


@pytest.fixture(scope="module")
def draws(kernel_cache: Path) -> dict[int, NativeDraw]:
    return {threads: NativeDraw(load_kernels(kernel_cache), threads) for threads in (1, 2)}


def random_logits(seed: int, rows: int, size: int, spread: float) -> Tensor:
    return torch.randn((rows, size), generator=torch.Generator().manual_seed(seed)) * spread


params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.001, 0.3, 0.8, 1.0, 2.0, 100.0]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 0.999, 1.0]),
    top_k=st.sampled_from([0, 1, 5, 300, 10_000]),
    min_p=st.sampled_from([0.0, 0.05, 0.9]),
)


@settings(max_examples=150, deadline=None)
@given(
    every=st.lists(params, min_size=1, max_size=6),
    seed=st.integers(0, 10_000),
    size=st.sampled_from([1, 15, 16, 257, 5000]),
    spread=st.sampled_from([0.01, 1.0, 5.0]),
)
def test_the_token_is_the_torch_samplers(
    draws: dict[int, NativeDraw], every: list[SamplingParams], seed: int, size: int, spread: float
) -> None:
    logits = random_logits(seed, len(every), size, spread)
    uniforms = torch.rand(len(every), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    maxima, _ = row_maxima(logits)

    tokens = draws[1].draw_tokens(logits, maxima, every, uniforms)

    # Where the number falls next to a border, one ulp in a weight moves it: both sides of it are right.
    near = [
        draw_tokens(logits, maxima, every, (uniforms + d).clamp(0, 1 - 1e-9)) for d in (-2e-4, -1e-5, 0, 1e-5, 2e-4)
    ]
    assert all(
        int(tokens[row]) in {int(some[row]) for some in near} or near[1][row] <= tokens[row] <= near[3][row]
        for row in range(len(every))
    )


def test_tokens_come_as_often_as_their_probability_says(draws: dict[int, NativeDraw]) -> None:
    logits = random_logits(1, 1, 40, 1.5).expand(20_000, 40)
    uniforms = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    some = [SamplingParams(temperature=0.7)] * 20_000

    tokens = draws[2].draw_tokens(logits, logits.amax(1), some, uniforms)

    shares = tokens.bincount(minlength=40) / 20_000
    torch.testing.assert_close(shares, (logits[0] / 0.7).softmax(0), atol=1e-4, rtol=0)


def test_top_p_keeps_the_likeliest_and_nothing_else(draws: dict[int, NativeDraw]) -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(1000, 4)
    uniforms = torch.arange(1000, dtype=torch.float64) / 1000
    some = [SamplingParams(top_p=0.79)] * 1000

    tokens = draws[2].draw_tokens(logits, logits.amax(1), some, uniforms)

    assert tokens.unique().tolist() == [0, 1]
    assert abs(int((tokens == 0).sum()) - 625) <= 1


def test_equal_tokens_at_the_edge_of_top_k_are_all_kept(draws: dict[int, NativeDraw]) -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0, 0.0]).expand(1000, 6)
    uniforms = torch.arange(1000, dtype=torch.float64) / 1000

    tokens = draws[1].draw_tokens(logits, logits.amax(1), [SamplingParams(top_k=2)] * 1000, uniforms)

    assert tokens.unique().tolist() == [1, 2, 3, 4]


def test_a_forbidden_token_is_never_drawn(draws: dict[int, NativeDraw]) -> None:
    logits = torch.full((1000, 300), -torch.inf)
    logits[:, [7, 290]] = 0.0
    uniforms = torch.linspace(0, 1 - 2**-53, 1000, dtype=torch.float64)

    for some in (SamplingParams(temperature=100.0), SamplingParams(top_p=0.9999), SamplingParams(top_k=200)):
        tokens = draws[1].draw_tokens(logits, logits.amax(1), [some] * 1000, uniforms)
        assert tokens.unique().tolist() == [7, 290]


def test_a_row_does_not_depend_on_the_others_or_on_threads(draws: dict[int, NativeDraw]) -> None:
    logits = random_logits(3, 40, 3001, 3.0)
    uniforms = torch.rand(40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    some = [SamplingParams(temperature=0.8, top_p=0.9), SamplingParams(top_k=40), SamplingParams(temperature=1.3)] * 13
    some.append(SamplingParams(min_p=0.1))
    maxima, _ = draws[1].row_maxima(logits)

    together = draws[2].draw_tokens(logits, maxima, some, uniforms)

    alone = [
        draws[1].draw_tokens(logits[row, None], maxima[row, None], some[row : row + 1], uniforms[row, None])
        for row in range(40)
    ]
    assert torch.equal(together, torch.cat(alone))


def test_maxima_are_the_first_and_tell_nan(draws: dict[int, NativeDraw]) -> None:
    logits = random_logits(4, 6, 75, 1.0)
    logits[0, [40, 70]] = 9.0
    logits[1, 74] = torch.nan
    logits[2, 3] = torch.inf
    logits[3] = -torch.inf

    maxima, indices = draws[2].row_maxima(logits)

    expected, first = logits.max(1)
    assert torch.equal(maxima.nan_to_num(12345.0), expected.nan_to_num(12345.0))
    assert maxima[1].isnan()
    assert indices[0] == 40
    assert torch.equal(indices[[2, 4, 5]], first[[2, 4, 5]])
