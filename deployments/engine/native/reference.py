"""The Llama family in plain torch, one document at a time: what the quantised kernels are calibrated on and tested
against. Slow, and meant to be read."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from deployments.engine.native.architecture import Architecture

# Computes the linear of that name: qkv, output, gate_up or down.
Linear = Callable[[str, Tensor], Tensor]
Weights = Mapping[str, Tensor]


class Checkpoint:
    """The float32 weights of a model directory in Hugging Face layout, layer by layer."""

    def __init__(self, directory: Path, architecture: Architecture) -> None:
        """Raises OSError or ValueError where there are no safetensors."""
        self._architecture = architecture
        files = sorted(directory.glob("model*.safetensors"))
        if not files:
            raise ValueError(f"{directory} holds no model.safetensors")
        opened: list[Any] = [safe_open(file, "pt") for file in files]
        self._where = {name: file for file in opened for name in file.keys()}  # noqa: SIM118

    def embedding(self) -> Tensor:
        return self._tensor("model.embed_tokens.weight")

    def norm(self) -> Tensor:
        return self._tensor("model.norm.weight")

    def head(self) -> Tensor:
        return self.embedding() if self._architecture.tied_embeddings else self._tensor("lm_head.weight")

    def layers(self) -> Iterator[dict[str, Tensor]]:
        """attention_norm, qkv [n, hidden], with biases qkv_bias, output, mlp_norm, gate_up and down."""
        for index in range(self._architecture.num_layers):
            prefix = f"model.layers.{index}."
            parts = [f"{prefix}self_attn.{part}_proj" for part in "qkv"]
            layer = {
                "attention_norm": self._tensor(f"{prefix}input_layernorm.weight"),
                "qkv": torch.cat([self._tensor(f"{part}.weight") for part in parts]),
                "output": self._tensor(f"{prefix}self_attn.o_proj.weight"),
                "mlp_norm": self._tensor(f"{prefix}post_attention_layernorm.weight"),
                "gate_up": torch.cat([self._tensor(f"{prefix}mlp.{part}_proj.weight") for part in ("gate", "up")]),
                "down": self._tensor(f"{prefix}mlp.down_proj.weight"),
            }
            if self._architecture.qkv_bias:
                layer["qkv_bias"] = torch.cat([self._tensor(f"{part}.bias") for part in parts])
            yield layer

    def _tensor(self, name: str) -> Tensor:
        if name not in self._where:
            raise ValueError(f"the model's files hold no {name}")
        tensor: Tensor = self._where[name].get_tensor(name)
        return tensor.float()


def plain_linear(weights: Weights) -> Linear:
    return lambda name, x: functional.linear(x, weights[name])


def run_layer(
    architecture: Architecture, weights: Weights, x: Tensor, linear: Linear, *, kv_dtype: torch.dtype = torch.float32
) -> Tensor:
    """One layer over the tokens x [T, hidden] of one document, from its first position on."""
    heads, kv_heads, head_dim = architecture.num_heads, architecture.num_kv_heads, architecture.head_dim
    qkv = linear("qkv", rms_norm(x, weights["attention_norm"], architecture.epsilon))
    if "qkv_bias" in weights:
        qkv = qkv + weights["qkv_bias"]
    query, key, value = torch.tensor_split(qkv.view(len(x), -1, head_dim).transpose(0, 1), (heads, heads + kv_heads))
    cosine, sine = _turns(architecture, len(x))
    query, key = _turn(query, cosine, sine), _turn(key, cosine, sine)
    key, value = key.to(kv_dtype).float(), value.to(kv_dtype).float()
    attended = functional.scaled_dot_product_attention(
        query[None], key[None], value[None], is_causal=True, enable_gqa=True
    )[0]
    x = x + linear("output", attended.transpose(0, 1).flatten(1))
    gate, up = linear("gate_up", rms_norm(x, weights["mlp_norm"], architecture.epsilon)).chunk(2, dim=1)
    return x + linear("down", functional.silu(gate) * up)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * weight


@torch.inference_mode()
def reference_logits(directory: Path, architecture: Architecture, documents: list[list[int]]) -> list[Tensor]:
    """The float32 logits [T, vocabulary] of each document."""
    checkpoint = Checkpoint(directory, architecture)
    hidden = [checkpoint.embedding()[torch.tensor(document)] for document in documents]
    for weights in checkpoint.layers():
        hidden = [run_layer(architecture, weights, x, plain_linear(weights)) for x in hidden]
    norm, head = checkpoint.norm(), checkpoint.head()
    return [rms_norm(x, norm, architecture.epsilon) @ head.T for x in hidden]


def _turns(architecture: Architecture, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, head_dim / 2] of the rotary embedding."""
    angles = torch.arange(length).float()[:, None] * torch.tensor(architecture.inverse_frequencies)
    return angles.cos(), angles.sin()


def _turn(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
