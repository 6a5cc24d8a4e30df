"""Prepares a model's weights for the native kernels: smoothing, int8 in groups, packing. Offline; seconds to minutes.

Smoothing (SmoothQuant, https://arxiv.org/abs/2211.10438, strength 0.5) moves the large channels of the activations into
the weights that they meet: into norms, and into the values and up projections before the other two linears. Nothing
is left to do at run time. The factors are kept for adapters, whose weights meet the same activations.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deployments.engine.native.architecture import Architecture
from deployments.engine.native.packing import GROUP, in_turn, pack, padded, quantize_weight
from deployments.engine.native.reference import Checkpoint, plain_linear, rms_norm, run_layer
from deployments.engine.native.weight_file import Array, write_weights

_LINE_FLOATS = 16


@torch.inference_mode()
def quantize(
    directory: Path, architecture: Architecture, documents: list[list[int]], target: Path, *, format_name: str
) -> None:
    """Writes the weights of the model in `directory`, calibrated on the documents' token ids, to the file `target`.

    Holds one layer in float32 at a time. Raises OSError or ValueError where the model's files are not what they should
    be.
    """
    checkpoint = Checkpoint(directory, architecture)
    embedding = checkpoint.embedding()
    tensors: dict[str, Array] = {
        "embedding": padded(embedding, GROUP, 1).half().numpy(),
        "frequencies": _vector(torch.tensor(architecture.inverse_frequencies), _LINE_FLOATS),
    }
    hidden = [embedding[torch.tensor(document)] for document in documents]
    del embedding
    for index, weights in enumerate(checkpoint.layers()):
        largest: dict[str, Tensor] = {}
        linear = _observed(plain_linear(weights), largest)
        hidden = [run_layer(architecture, weights, x, linear) for x in hidden]
        smoothed, factors = _smoothed(architecture, weights, largest)
        for name, tensor in (_quantized_layer(smoothed) | _vectors(factors)).items():
            tensors[f"layers.{index}.{name}"] = tensor
    norm, head = checkpoint.norm(), checkpoint.head()
    normed = torch.cat([rms_norm(x, norm, architecture.epsilon) for x in hidden])
    factor = _smoothing(normed.abs().amax(0), head)
    tensors["norm"] = _vector(norm / factor, GROUP)
    tensors["head"] = pack(*quantize_weight(head * factor))
    write_weights(target, tensors, {"format": format_name})


def _observed(linear: Callable[[str, Tensor], Tensor], largest: dict[str, Tensor]) -> Callable[[str, Tensor], Tensor]:
    """The linear, noting the largest magnitude of each input channel."""

    def observe(name: str, x: Tensor) -> Tensor:
        seen = x.abs().amax(0)
        largest[name] = torch.maximum(largest[name], seen) if name in largest else seen
        return linear(name, x)

    return observe


def _smoothing(largest: Tensor, weight: Tensor) -> Tensor:
    """By how much to shrink each input channel of a linear [n, k], and to enlarge the weights it meets."""
    factor = (largest.clamp(min=1e-5) / weight.abs().amax(0).clamp(min=1e-5)).sqrt()
    return factor.clamp(min=1e-3, max=1e3)


def _smoothed(
    architecture: Architecture, weights: dict[str, Tensor], largest: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The layer's weights, equivalent in exact arithmetic, with smoother activations between them.

    And what an adapter's weights are to be multiplied with for them: those that read a linear's input, by
    `<linear>_smoothing`, and those that add to values and up, by `values_factor` and `up_factor`.
    """
    factors: dict[str, Tensor] = {}
    layer = {name: tensor.clone() for name, tensor in weights.items()}
    # The heads that share a value share its factor.
    of_values = (architecture.num_kv_heads, architecture.num_heads // architecture.num_kv_heads, architecture.head_dim)
    shared = largest["output"].view(of_values).amax(1)
    meeting = layer["output"].abs().amax(0).view(of_values).amax(1)
    factor = _smoothing(shared.flatten(), meeting.view(1, -1))
    values = slice(architecture.qkv_size - architecture.num_kv_heads * architecture.head_dim, None)
    layer["qkv"][values] /= factor[:, None]
    if "qkv_bias" in layer:
        layer["qkv_bias"][values] /= factor
    factors["output_smoothing"] = factor.view(of_values[0], 1, of_values[2]).expand(of_values).flatten()
    factors["values_factor"] = 1 / factor
    layer["output"] *= factors["output_smoothing"]

    factor = factors["down_smoothing"] = _smoothing(largest["down"], layer["down"])
    factors["up_factor"] = 1 / factor
    layer["gate_up"][architecture.intermediate_size :] /= factor[:, None]
    layer["down"] *= factor
    for norm, linear in (("attention_norm", "qkv"), ("mlp_norm", "gate_up")):
        factor = factors[f"{linear}_smoothing"] = _smoothing(largest[linear], layer[linear])
        layer[norm] /= factor
        layer[linear] *= factor
    return layer, factors


def _quantized_layer(layer: dict[str, Tensor]) -> dict[str, Array]:
    gate, up = layer["gate_up"].chunk(2)
    packed: dict[str, Array] = {
        "attention_norm": _vector(layer["attention_norm"], GROUP),
        "qkv": pack(*quantize_weight(layer["qkv"])),
        "output": pack(*quantize_weight(layer["output"])),
        "mlp_norm": _vector(layer["mlp_norm"], GROUP),
        "gate_up": pack(*quantize_weight(in_turn(gate, up))),
        "down": pack(*quantize_weight(layer["down"])),
    }
    if "qkv_bias" in layer:
        packed["qkv_bias"] = _vector(layer["qkv_bias"], _LINE_FLOATS)
    return packed


def _vectors(tensors: dict[str, Tensor]) -> dict[str, Array]:
    return {name: _vector(tensor, _LINE_FLOATS) for name, tensor in tensors.items()}


def _vector(tensor: Tensor, multiple: int) -> Array:
    return np.ascontiguousarray(padded(tensor.float(), multiple, 0).numpy())
