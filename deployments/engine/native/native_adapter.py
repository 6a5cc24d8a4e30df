"""An adapter's low-rank pairs as the native kernels read them: int8 in groups, in the layout of kernels/lora.h.

The kernels hand an adapter the activations that the model's own weights meet, smoothed and quantised. So the input side
of a pair is multiplied with the factors that made its input smaller; what it adds to values and up the kernels scale.
"""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from deployments.engine.lora.peft_files import check_fits
from deployments.engine.native.architecture import Architecture
from deployments.engine.native.packing import GROUP
from deployments.engine.native.weight_file import Array
from deployments.engine.protocol import LoadedAdapter
from deployments.errors import InvalidAdapter
from deployments.types import AdapterRef

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linears of a layer, in the order in which a step meets them."""

_PARENTS = {target: "mlp" if target in ("gate_proj", "up_proj", "down_proj") else "self_attn" for target in TARGETS}
_INPUT_SMOOTHING = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_smoothing"),
    "o_proj": "output_smoothing",
    **dict.fromkeys(("gate_proj", "up_proj"), "gate_up_smoothing"),
    "down_proj": "down_smoothing",
}
# As in kernels/lora.h.
_RANK_TILE = 8
_MAX_RANK = 256
_LINE_BYTES = 64


class LowRank(ctypes.Structure):
    """`LowRank` of kernels/lora.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("a", "a_scales", "b", "b_scales")),
        ("ranks", ctypes.c_int32),
    )


@dataclass(frozen=True, slots=True, eq=False)
class NativeAdapter:
    """Implements PreparedAdapter. `parts` [layers * TARGETS] points into `packed`."""

    ref: AdapterRef
    packed: Array
    parts: ctypes.Array[LowRank]

    @property
    def num_bytes(self) -> int:
        return self.packed.nbytes + ctypes.sizeof(self.parts)

    @property
    def address(self) -> int:
        return ctypes.addressof(self.parts)


def linears(architecture: Architecture) -> dict[str, tuple[int, int]]:
    """(out, in) of every linear that an adapter can change, by its path in a Hugging Face checkpoint."""
    a = architecture
    key_size = a.num_kv_heads * a.head_dim
    shapes = {
        "q_proj": (a.attention_size, a.hidden_size),
        "k_proj": (key_size, a.hidden_size),
        "v_proj": (key_size, a.hidden_size),
        "o_proj": (a.hidden_size, a.attention_size),
        "gate_proj": (a.intermediate_size, a.hidden_size),
        "up_proj": (a.intermediate_size, a.hidden_size),
        "down_proj": (a.hidden_size, a.intermediate_size),
    }
    return {_path(layer, target): shape for layer in range(a.num_layers) for target, shape in shapes.items()}


def adapter_bytes(adapter: LoadedAdapter, architecture: Architecture) -> int:
    """The `num_bytes` of what `prepare_adapter` makes of it. Raises InvalidAdapter where it does not fit the model."""
    check_fits(adapter, linears(architecture))
    total = architecture.num_layers * len(TARGETS) * ctypes.sizeof(LowRank)
    for path, pair in adapter.pairs.items():
        _check_rank(pair.rank, path)
        rank = _whole(pair.rank, _RANK_TILE)
        size_in, size_out = _whole(pair.a.shape[1], GROUP), _whole(len(pair.b), GROUP)
        # In the order of _packed.
        parts = (rank * size_in, rank * size_in // GROUP * 4, rank * size_out, rank * 4)
        total += sum(_whole(part, _LINE_BYTES) for part in parts)
    return total


def prepare_adapter(adapter: LoadedAdapter, architecture: Architecture, weights: Mapping[str, Array]) -> NativeAdapter:
    """Raises InvalidAdapter where it does not fit the model.

    weights: those of the prepared model, with the factors of their smoothing. Pure numpy: it runs beside the step
    thread, and torch would start threads of its own here.
    """
    check_fits(adapter, linears(architecture))
    pieces: list[Array] = []
    size = 0
    offsets: dict[int, list[int]] = {}
    # In the order of a step, so that reading an adapter is one pass through memory.
    for layer in range(architecture.num_layers):
        for number, target in enumerate(TARGETS):
            pair = adapter.pairs.get(_path(layer, target))
            if pair is None:
                continue
            offsets[layer * len(TARGETS) + number] = places = []
            smoothing = weights[f"layers.{layer}.{_INPUT_SMOOTHING[target]}"][: pair.a.shape[1]]
            with np.errstate(over="ignore"):
                a = pair.a * smoothing
            for piece in _packed(a, pair.b, _path(layer, target)):
                places.append(size)
                pieces.append(piece)
                size += len(piece)
    # One cache line more, since numpy aligns to less.
    memory = np.zeros(size + _LINE_BYTES, np.uint8)
    first = -memory.ctypes.data % _LINE_BYTES
    packed = memory[first : first + size]
    if pieces:
        np.concatenate(pieces, out=packed)
    parts = (LowRank * (architecture.num_layers * len(TARGETS)))()
    for index, places in offsets.items():
        layer, number = divmod(index, len(TARGETS))
        rank = adapter.pairs[_path(layer, TARGETS[number])].rank
        parts[index] = LowRank(*(packed.ctypes.data + place for place in places), _whole(rank, _RANK_TILE))
    return NativeAdapter(adapter.ref, packed, parts)


def _path(layer: int, target: str) -> str:
    return f"model.layers.{layer}.{_PARENTS[target]}.{target}"


def _packed(a: Array, b: Array, path: str) -> list[Array]:
    """a [rank, in] and its scales, b [out, rank] and its scales as bytes, each in whole cache lines."""
    _check_rank(len(a), path)
    a_values, a_scales = _quantized(_whole_tiles(a), GROUP)
    b_values, b_scales = _quantized(_whole_tiles(b.T), None)
    if not (np.isfinite(a_scales).all() and np.isfinite(b_scales).all()):
        raise InvalidAdapter(f"{path}: the adapter's numbers are too large for this model")
    a_tiles = a_values.reshape(-1, _RANK_TILE, a_values.shape[1] // 8, 8).transpose(0, 2, 1, 3)
    a_tile_scales = a_scales.reshape(-1, _RANK_TILE, a_scales.shape[1]).transpose(0, 2, 1)
    b_tiles = b_values.reshape(-1, 4, b_values.shape[1] // GROUP, GROUP).transpose(2, 0, 3, 1)
    return [_lines(part) for part in (a_tiles, a_tile_scales, b_tiles, b_scales)]


def _check_rank(rank: int, path: str) -> None:
    if rank > _MAX_RANK:
        raise InvalidAdapter(f"{path}: its rank {rank} is above {_MAX_RANK}")


def _whole(number: int, unit: int) -> int:
    return number + -number % unit


def _whole_tiles(matrix: Array) -> Array:
    """[rank, n] with as many zeros as are missing to whole tiles and groups."""
    rank, n = matrix.shape
    whole = np.zeros((_whole(rank, _RANK_TILE), _whole(n, GROUP)), np.float32)
    whole[:rank, :n] = matrix
    return whole


def _quantized(matrix: Array, group: int | None) -> tuple[Array, Array]:
    """[rank, n] to bytes plus 128 [rank, n] and float32 scales for each group of a row, or each row."""
    grouped = matrix.reshape(len(matrix), -1, group or matrix.shape[1])
    scales = (np.abs(grouped).max(2) / np.float32(127)).astype(np.float32)
    divisor = np.maximum(scales, np.finfo(np.float32).tiny)[:, :, None]
    with np.errstate(invalid="ignore"):
        values = (np.rint(grouped / divisor) + 128).astype(np.uint8)
    return values.reshape(matrix.shape), scales


def _lines(array: np.ndarray[Any, Any]) -> Array:
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    missing = -len(flat) % _LINE_BYTES
    return np.concatenate((flat, np.zeros(missing, np.uint8))) if missing else flat
