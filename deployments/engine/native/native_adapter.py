"""An adapter's low-rank pairs as the native kernels read them: int8 in groups, in the layout of kernels/lora.h.

The kernels hand an adapter the activations that the model's own weights meet, smoothed and quantised. So the input side
of a pair is multiplied with the factors that made its input smaller; what it adds to values and up the kernels scale.
"""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from deployments.engine.lora.peft_files import check_fits
from deployments.engine.native.architecture import Architecture
from deployments.engine.native.packing import GROUP
from deployments.engine.native.weight_file import Array
from deployments.engine.protocol import LoadedAdapter, LowRankPair
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


class _PairToPack(ctypes.Structure):
    """`PairToPack` of kernels/pack_lora.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("a", "smoothing", "b")),
        *((name, ctypes.c_int32) for name in ("rank", "k", "n")),
        *((name, ctypes.c_void_p) for name in ("packed_a", "a_scales", "packed_b", "b_scales")),
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
    return architecture.num_layers * len(TARGETS) * ctypes.sizeof(LowRank) + _packed_bytes(adapter)


def prepare_adapter(
    adapter: LoadedAdapter, architecture: Architecture, weights: Mapping[str, Array], kernels: ctypes.CDLL
) -> NativeAdapter:
    """Raises InvalidAdapter where it does not fit the model.

    weights: those of the prepared model, with the factors of their smoothing. Runs beside the step thread, and holds
    the interpreter only to say where everything lies.
    """
    check_fits(adapter, linears(architecture))
    size = _packed_bytes(adapter)
    # One cache line more, since numpy aligns to less.
    memory: Array = np.zeros(size + _LINE_BYTES, np.uint8)
    first = -memory.ctypes.data % _LINE_BYTES
    packed = memory[first : first + size]
    parts = (LowRank * (architecture.num_layers * len(TARGETS)))()
    pairs = (_PairToPack * len(adapter.pairs))()
    place: int = packed.ctypes.data
    paths: list[str] = []
    # In the order of a step, so that reading an adapter is one pass through memory.
    for layer in range(architecture.num_layers):
        for number, target in enumerate(TARGETS):
            path = _path(layer, target)
            pair = adapter.pairs.get(path)
            if pair is None:
                continue
            places = []
            for part in _part_bytes(pair):
                places.append(place)
                place += _whole(part, _LINE_BYTES)
            smoothing = weights[f"layers.{layer}.{_INPUT_SMOOTHING[target]}"]
            shape = (pair.rank, pair.a.shape[1], len(pair.b))
            pairs[len(paths)] = _PairToPack(
                pair.a.ctypes.data, smoothing.ctypes.data, pair.b.ctypes.data, *shape, *places
            )
            parts[layer * len(TARGETS) + number] = LowRank(*places, _whole(pair.rank, _RANK_TILE))
            paths.append(path)
    if (too_large := kernels.tritext_pack_pairs(pairs, len(paths))) >= 0:
        raise InvalidAdapter(f"{paths[too_large]}: the adapter's numbers are too large for this model")
    return NativeAdapter(adapter.ref, packed, parts)


def _path(layer: int, target: str) -> str:
    return f"model.layers.{layer}.{_PARENTS[target]}.{target}"


def _packed_bytes(adapter: LoadedAdapter) -> int:
    """Of all its pairs together. Raises InvalidAdapter for a rank that the kernels do not compute."""
    total = 0
    for path, pair in adapter.pairs.items():
        if pair.rank > _MAX_RANK:
            raise InvalidAdapter(f"{path}: its rank {pair.rank} is above {_MAX_RANK}")
        total += sum(_whole(part, _LINE_BYTES) for part in _part_bytes(pair))
    return total


def _part_bytes(pair: LowRankPair) -> tuple[int, int, int, int]:
    """Of A, its scales, B and its scales."""
    rank = _whole(pair.rank, _RANK_TILE)
    size_in, size_out = _whole(pair.a.shape[1], GROUP), _whole(len(pair.b), GROUP)
    return rank * size_in, rank * size_in // GROUP * 4, rank * size_out, rank * 4


def _whole(number: int, unit: int) -> int:
    return number + -number % unit
