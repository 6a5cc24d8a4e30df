"""From edited logits to a token: temperature, top_k, top_p, min_p and the draw; knows no requests.

The draw inverts the cumulative distribution of the kept tokens, in the order of the vocabulary, at one uniform number
per row. That order is the same whatever the logits are, so an error of one ulp in them moves the borders between the
tokens by about as much and changes the outcome only for numbers that close to a border; in descending order two
nearly equal tokens could change places, which moves everything between them.

On CPU a row's token does not depend on the rows beside it: every floating-point reduction runs within the row, in an
order that only the vocabulary's size decides, or affects nothing but how many candidates are looked at.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from deployments.engine.sampling.ranking import at_least, blocks, lower_bounds, row_maxima
from deployments.types import SamplingParams

_MAX_CHEAP_RANK = 256
_BLOCK = 256

# On CPU the temporaries of a few rows stay in the cache: a third off the time of a batch of 32 rows of 49,152.
_NUM_CACHED_LOGITS = 2**18
_MANY_ROWS = 1024


class Draw(Protocol):
    """The part of sampling that looks at every logit. `rows_at_once`: in how large portions it is best asked."""

    rows_at_once: int

    def row_maxima(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """See `ranking.row_maxima`."""

    def draw_tokens(self, logits: Tensor, maxima: Tensor, params: Sequence[SamplingParams], uniforms: Tensor) -> Tensor:
        """See `draw_tokens`."""


class TorchDraw:
    """Implements `Draw` for any device."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.rows_at_once = max(1, _NUM_CACHED_LOGITS // vocab_size) if device.type == "cpu" else _MANY_ROWS

    def row_maxima(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        return row_maxima(logits)

    def draw_tokens(self, logits: Tensor, maxima: Tensor, params: Sequence[SamplingParams], uniforms: Tensor) -> Tensor:
        return draw_tokens(logits, maxima, params, uniforms)


def draw_tokens(logits: Tensor, maxima: Tensor, params: Sequence[SamplingParams], uniforms: Tensor) -> Tensor:
    """One token id for each row of `logits`, whose largest values `maxima` are finite.

    `uniforms` holds a float64 number in [0, 1) for each row. Every temperature is above 0.
    """
    vocab_size = logits.shape[1]
    temperatures = _per_row(logits, [p.temperature for p in params])
    probabilities = _probabilities(logits, maxima, temperatures)
    min_p = _per_row(logits, [p.min_p for p in params])
    floors = min_p * probabilities.amax(1)

    top_k = [p.top_k if 0 < p.top_k < vocab_size else 0 for p in params]
    truncated = [row for row, p in enumerate(params) if top_k[row] or p.top_p < 1.0]
    if not truncated:
        return _draw_from_all(probabilities, floors, uniforms)

    tokens = torch.empty(len(params), dtype=torch.int64, device=logits.device)
    rows = torch.tensor(truncated, device=logits.device)
    tokens[rows] = _draw_truncated(
        probabilities[rows],
        torch.tensor([top_k[row] for row in truncated], device=logits.device),
        torch.tensor([params[row].top_p for row in truncated], dtype=torch.float64, device=logits.device),
        floors[rows],
        uniforms[rows],
    )
    whole = sorted(set(range(len(params))).difference(truncated))
    if whole:
        rows = torch.tensor(whole, device=logits.device)
        tokens[rows] = _draw_from_all(probabilities[rows], floors[rows], uniforms[rows])
    return tokens


def _per_row(logits: Tensor, values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=logits.device).to(logits.dtype)


def _probabilities(logits: Tensor, maxima: Tensor, temperatures: Tensor) -> Tensor:
    """softmax(logits / temperature). The maximum goes first, so that no temperature makes anything overflow."""
    limits = torch.finfo(logits.dtype)
    divisors = temperatures.clamp(limits.tiny, limits.max).unsqueeze(1)
    return (logits - maxima.unsqueeze(1)).div_(divisors).softmax(1)


def _draw_from_all(probabilities: Tensor, floors: Tensor, uniforms: Tensor) -> Tensor:
    """Draws from the tokens whose probability reaches the row's floor, in two levels: the block, the token in it."""
    if bool((floors > 0).any()):
        probabilities = probabilities.where(probabilities >= floors.unsqueeze(1), 0.0)
    blocked = blocks(probabilities, _BLOCK, fill=0.0)
    totals = blocked.sum(-1, dtype=torch.float64).cumsum(1)
    targets = uniforms * totals[:, -1]
    block = torch.searchsorted(totals, targets.unsqueeze(1), right=True)
    before = totals.gather(1, (block - 1).clamp(min=0)).where(block > 0, 0.0).squeeze(1)
    block = block.squeeze(1)
    chosen = blocked[torch.arange(len(block), device=block.device), block]
    return block * _BLOCK + _first_above(chosen.cumsum(1, dtype=torch.float64), targets - before)


def _draw_truncated(probabilities: Tensor, top_k: Tensor, top_p: Tensor, floors: Tensor, uniforms: Tensor) -> Tensor:
    """Draws where `top_k` (0: all) or `top_p` cut the distribution, from as few candidates as the row allows."""
    bounds = lower_bounds(probabilities, torch.where(top_k > 0, top_k, _MAX_CHEAP_RANK).clamp(max=_MAX_CHEAP_RANK))
    large = (top_k > _MAX_CHEAP_RANK).nonzero().squeeze(1)
    if len(large):
        ranked = probabilities[large].topk(int(top_k[large].max())).values
        bounds[large] = ranked.gather(1, top_k[large].unsqueeze(1) - 1).squeeze(1)
    tokens, complete = _draw_above(probabilities, bounds, top_k, top_p, floors, uniforms)

    rest = (~complete).nonzero().squeeze(1)
    if len(rest):
        # All tokens below this bound together have less mass than top_p leaves out.
        bounds = ((1.0 - top_p[rest]) / (2 * probabilities.shape[1])).to(probabilities.dtype)
        arguments = (top_k[rest], top_p[rest], floors[rest], uniforms[rest])
        tokens[rest], _ = _draw_above(probabilities[rest], bounds, *arguments)
    return tokens


def _draw_above(
    probabilities: Tensor, bounds: Tensor, top_k: Tensor, top_p: Tensor, floors: Tensor, uniforms: Tensor
) -> tuple[Tensor, Tensor]:
    """A draw that looks only at tokens whose probability reaches the row's bound, and whether they were enough.

    Where they were, the token is the one that looking at all would give. With top_k the bound must let the k
    likeliest pass; then they always are. top_p leaves out a token if those before it, likeliest first, have top_p of
    the mass that top_k left.
    """
    candidates, token_ids = at_least(probabilities, bounds, fill=0.0)
    ranked, order = candidates.sort(dim=1, descending=True, stable=True)
    least = ranked.gather(1, (top_k - 1).clamp(min=0).unsqueeze(1))
    kept = (ranked >= least) | (top_k == 0).unsqueeze(1)
    mass = ranked.where(kept, 0.0).cumsum(1, dtype=torch.float64)
    total = mass[:, -1].where(top_k > 0, 1.0)
    limit = torch.where(top_p < 1.0, top_p * total, torch.inf)
    complete = (top_k > 0) | (mass[:, -1] >= limit)

    kept[:, 1:] &= mass[:, :-1] < limit.unsqueeze(1)
    kept &= ranked >= floors.unsqueeze(1)
    weights = torch.zeros_like(candidates).scatter_(1, order, ranked.where(kept, 0.0))
    mass = weights.cumsum(1, dtype=torch.float64)
    drawn = _first_above(mass, uniforms * mass[:, -1])
    return token_ids.gather(1, drawn.unsqueeze(1)).squeeze(1), complete


def _first_above(cumulative: Tensor, targets: Tensor) -> Tensor:
    """For each row the index of the first value above its target, or the first of the largest where rounding left none.

    Either is an index with a weight above 0, since the value before it is smaller.
    """
    found = torch.searchsorted(cumulative, targets.unsqueeze(1), right=True)
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    return torch.minimum(found, last).squeeze(1)
