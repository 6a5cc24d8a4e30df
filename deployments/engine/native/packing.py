"""Int8 weights in groups, and the layout, described in kernels/linear.h, in which the kernels read them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, np.dtype[np.uint8]]

GROUP = 64
COLUMNS = 48
_LINE_BYTES = 64


def padded(tensor: Tensor, multiple: int, dim: int) -> Tensor:
    """The tensor, with zeros at the end of a dimension up to a multiple."""
    missing = -tensor.shape[dim] % multiple
    zeros = tensor.new_zeros([missing if i == dim % tensor.dim() else n for i, n in enumerate(tensor.shape)])
    return torch.cat([tensor, zeros], dim)


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[n, k] to int8 values [n, k] and float32 scales [n, k / GROUP], k rounded up to a group.

    The scales are rounded up to what bfloat16 can hold, and the values rounded for those scales.
    """
    grouped = padded(weight.float(), GROUP, 1).view(len(weight), -1, GROUP)
    scales = grouped.abs().amax(2) / 127
    bits = (scales.view(torch.int32) + 0xFFFF) & -0x10000
    scales = bits.view(torch.float32)
    values = (grouped / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, :, None]).round().to(torch.int8)
    return values.flatten(1), scales


def pack(values: Tensor, scales: Tensor) -> Array:
    """Int8 values [n, k] and scales [n, k / GROUP] as the blocks that the kernels read, in one row of bytes."""
    values, scales = padded(values, COLUMNS, 0), padded(scales, COLUMNS, 0)
    blocks, k = values.shape[0] // COLUMNS, values.shape[1]
    unsigned = (values.to(torch.int16) + 128).to(torch.uint8)
    weights = unsigned.view(blocks, COLUMNS, k // 4, 4).transpose(1, 2).reshape(blocks, -1)
    by_group = scales.view(blocks, COLUMNS, -1).transpose(1, 2).contiguous().to(torch.bfloat16)
    scale_bytes = by_group.view(torch.uint8).reshape(blocks, -1)
    return padded(torch.cat([weights, scale_bytes], 1), _LINE_BYTES, 1).flatten().numpy()


def packed_bytes(n: int, k: int) -> int:
    """How many bytes `pack` makes of values [n, k]."""
    k = -(-k // GROUP) * GROUP
    block = COLUMNS * k + COLUMNS * 2 * (k // GROUP)
    return -(-n // COLUMNS) * (-(-block // _LINE_BYTES) * _LINE_BYTES)


def in_turn(gate: Tensor, up: Tensor) -> Tensor:
    """Rows of two matrices, 48 of the one and 48 of the other in turn, as a gated linear has them."""
    gate, up = padded(gate, COLUMNS, 0), padded(up, COLUMNS, 0)
    pairs = torch.stack([rows.view(-1, COLUMNS, rows.shape[1]) for rows in (gate, up)], 1)
    return pairs.flatten(0, 2)
