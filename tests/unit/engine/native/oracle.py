"""The arithmetic of the native kernels in plain torch: same quantised weights and activations, no packing, no pages."""

from pathlib import Path

import torch
from torch import Tensor

from deployments.engine.native.architecture import Architecture
from deployments.engine.native.packing import COLUMNS, GROUP, padded
from deployments.engine.native.reference import rms_norm, run_layer
from deployments.engine.native.weight_file import Array, map_weights


@torch.inference_mode()
def quantized_logits(architecture: Architecture, file: Path, token_ids: list[int]) -> Tensor:
    """The logits [T, vocabulary] that the kernels should give for one document."""
    weights = map_weights(file)
    a = architecture
    x = torch.from_numpy(weights["embedding"].astype("float32"))[torch.tensor(token_ids), : a.hidden_size]
    for index in range(a.num_layers):
        of_layer = {
            name.split(".", 2)[2]: tensor for name, tensor in weights.items() if name.startswith(f"layers.{index}.")
        }
        vectors = {
            name: torch.from_numpy(tensor.copy())[: a.qkv_size if name == "qkv_bias" else a.hidden_size]
            for name, tensor in of_layer.items()
            if tensor.dtype == "float32"
        }
        matrices = {
            "qkv": unpack(of_layer["qkv"], a.qkv_size, a.hidden_size),
            "output": unpack(of_layer["output"], a.hidden_size, a.attention_size),
            "gate_up": _apart(unpack(of_layer["gate_up"], 2 * _up(a.intermediate_size, COLUMNS), a.hidden_size), a),
            "down": unpack(of_layer["down"], a.hidden_size, a.intermediate_size),
        }

        def linear(name: str, x: Tensor, matrices: dict[str, tuple[Tensor, Tensor]] = matrices) -> Tensor:
            return quantized_linear(x, *matrices[name])

        x = run_layer(a, vectors, x, linear, kv_dtype=torch.float16)
    norm = torch.from_numpy(weights["norm"].copy())[: a.hidden_size]
    return quantized_linear(rms_norm(x, norm, a.epsilon), *unpack(weights["head"], a.vocab_size, a.hidden_size))


def quantized_linear(x: Tensor, values: Tensor, scales: Tensor) -> Tensor:
    """x [T, k] times int8 values [n, k] with scales [n, k / GROUP]: a scale for each row and group of x as well."""
    grouped = padded(x, GROUP, 1).unflatten(1, (-1, GROUP))
    largest = grouped.abs().amax(2)
    inverse = torch.where(largest > 0, 127 / largest, 0)
    rounded = (grouped * inverse[:, :, None]).round()
    total = x.new_zeros((len(x), len(values)))
    for g, group in enumerate(values.float().unflatten(1, (-1, GROUP)).unbind(1)):
        sums = rounded[:, g] @ group.T  # exact: below 2^24
        scale = scales[:, g] * (largest[:, g] / 127)[:, None]
        total = (sums.double() * scale.double() + total.double()).float()  # as one fused operation
    return total


def unpack(packed: Array, n: int, k: int) -> tuple[Tensor, Tensor]:
    """The inverse of `pack`: int8 values [n, k] and float32 scales [n, k / GROUP], k rounded up to a group."""
    k = _up(k, GROUP)
    blocks = _up(n, COLUMNS) // COLUMNS
    rows = torch.from_numpy(packed.copy()).view(blocks, -1)
    weights = rows[:, : k * COLUMNS].reshape(blocks, k // 4, COLUMNS, 4).transpose(1, 2).reshape(-1, k)
    scale_bytes = rows[:, k * COLUMNS : k * COLUMNS + k // GROUP * COLUMNS * 2].contiguous()
    scales = scale_bytes.view(torch.bfloat16).view(blocks, -1, COLUMNS).transpose(1, 2).reshape(blocks * COLUMNS, -1)
    return (weights.to(torch.int16) - 128).to(torch.int8)[:n], scales.float()[:n]


def _apart(matrix: tuple[Tensor, Tensor], architecture: Architecture) -> tuple[Tensor, Tensor]:
    """Gate and up rows, one behind the other, of a matrix that has them in turn."""
    parts = []
    for tensor in matrix:
        pairs = tensor.unflatten(0, (-1, 2, COLUMNS)).transpose(0, 1).flatten(1, 2)
        parts.append(pairs[:, : architecture.intermediate_size].flatten(0, 1))
    return parts[0], parts[1]


def _up(value: int, multiple: int) -> int:
    return value + -value % multiple
