"""Draws tokens with the compiled kernels: on CPU."""

import ctypes
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from deployments.types import SamplingParams


class _Draw(ctypes.Structure):
    """`Draw` of kernels/draw.cpp."""

    _fields_ = (
        ("uniform", ctypes.c_double),
        ("top_p", ctypes.c_double),
        ("temperature", ctypes.c_float),
        ("min_p", ctypes.c_float),
        ("top_k", ctypes.c_int32),
        ("row", ctypes.c_int32),
    )


class NativeDraw:
    """Implements `sampling.draw.Draw` for float32 logits on CPU. A row's answer does not depend on the other rows.

    The exponential is not torch's: where a uniform number falls within an ulp of the border between two tokens, the
    token may be the other one.
    """

    rows_at_once = 1024

    def __init__(self, kernels: ctypes.CDLL, num_threads: int = 0) -> None:
        """num_threads 0: as many as the process may use."""
        self._kernels = kernels
        self._num_threads = num_threads or len(os.sched_getaffinity(0))

    def row_maxima(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The largest value of each row and its first index; NaN (at any index) for a row that holds NaN."""
        logits = logits.contiguous()
        rows, size = logits.shape
        maxima, indices = torch.empty(rows), torch.empty(rows, dtype=torch.int64)
        self._kernels.tritext_maxima(
            _pointer(logits), rows, size, _pointer(maxima), _pointer(indices), self._num_threads
        )
        return maxima, indices

    def draw_tokens(self, logits: Tensor, maxima: Tensor, params: Sequence[SamplingParams], uniforms: Tensor) -> Tensor:
        """One token id for each row of `logits`, whose largest values `maxima` are finite.

        `uniforms` holds a float64 number in [0, 1) for each row. Every temperature is above 0.
        """
        logits, maxima = logits.contiguous(), maxima.contiguous()
        size = logits.shape[1]
        draws = (_Draw * len(params))(
            *(
                _Draw(uniform, p.top_p, p.temperature, p.min_p, p.top_k if 0 < p.top_k < size else 0, row)
                for row, (p, uniform) in enumerate(zip(params, uniforms.tolist(), strict=True))
            )
        )
        tokens = torch.empty(len(params), dtype=torch.int64)
        self._kernels.tritext_draw(
            _pointer(logits),
            size,
            _pointer(maxima),
            draws,
            len(params),
            _pointer(tokens),
            self._num_threads,
        )
        return tokens


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
