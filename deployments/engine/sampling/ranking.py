"""The largest values of each row, without sorting the row; equal values rank by their index, lowest first.

Everything here gives the same for a row whatever rows stand beside it.
"""

import torch
import torch.nn.functional
from torch import Tensor

_BLOCK = 64


def blocks(values: Tensor, size: int, *, fill: float) -> Tensor:
    """[R, N] as [R, ceil(N / size), size], filled up with `fill`; a view where nothing needs filling."""
    missing = -values.shape[1] % size
    if missing:
        values = torch.nn.functional.pad(values, (0, missing), value=fill)
    return values.reshape(values.shape[0], -1, size)


def row_maxima(values: Tensor) -> tuple[Tensor, Tensor]:
    """The largest value of each row and its first index; NaN (at any index) for a row that holds NaN.

    Several times as fast as torch's argmax on CPU, which does not vectorise.
    """
    blocked = blocks(values, _BLOCK, fill=-torch.inf)
    maxima, block = blocked.amax(-1).max(-1)
    within = blocked[torch.arange(len(values), device=values.device), block].argmax(-1)
    return maxima, block * _BLOCK + within


def lower_bounds(values: Tensor, ranks: Tensor) -> Tensor:
    """For each row a number that at least `ranks[row]` of its values reach, and as few more as is cheap to find.

    The maxima of disjoint blocks are values of the row, so the r-th largest of them is at most the r-th largest value.
    Where there are fewer blocks than that, the answer is -inf.
    """
    maxima = blocks(values, _BLOCK, fill=-torch.inf).amax(-1)
    num_ranked = min(int(ranks.max()), maxima.shape[1])
    ranked = maxima.topk(num_ranked).values
    bounds = ranked.gather(1, ranks.clamp(max=num_ranked).unsqueeze(1) - 1).squeeze(1)
    return bounds.where(ranks <= num_ranked, -torch.inf)


def at_least(values: Tensor, bounds: Tensor, *, fill: float) -> tuple[Tensor, Tensor]:
    """The values of each row that reach its bound, with their indices, in the order of the indices.

    Rows with fewer than others are filled up at the end with the value `fill` and the index 0.
    """
    reached = values >= bounds.unsqueeze(1)
    row, index = reached.nonzero(as_tuple=True)
    counts = reached.sum(1)
    slot = torch.arange(len(row), device=values.device) - (counts.cumsum(0) - counts)[row]
    shape = (len(values), int(counts.max()))
    kept = values.new_full(shape, fill)
    indices = index.new_zeros(shape)
    kept[row, slot] = values[row, index]
    indices[row, slot] = index
    return kept, indices


def largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest values of each row and their indices, largest first."""
    ranks = torch.full((len(values),), count, device=values.device)
    candidates, indices = at_least(values, lower_bounds(values, ranks), fill=-torch.inf)
    ranked, order = candidates.sort(dim=1, descending=True, stable=True)
    return ranked[:, :count], indices.gather(1, order[:, :count])
