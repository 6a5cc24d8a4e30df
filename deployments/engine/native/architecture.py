"""Which models the native kernels compute, read from config.json alone. Knows no torch."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.model_files import ModelSourceError, read_json

PAGE_TOKENS = 16
"""How many tokens a page of the kernels' cache holds; a block of the engine is one page or several."""

_MODEL_TYPES = ("llama", "mistral", "qwen2")


class Unsupported(Exception):
    """The native kernels do not compute this model, or not on this machine; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """The sizes of a Llama-family model. inverse_frequencies: of the rotary embedding, `head_dim / 2` of them."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    epsilon: float
    tied_embeddings: bool
    qkv_bias: bool
    inverse_frequencies: tuple[float, ...]

    @property
    def qkv_size(self) -> int:
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def attention_size(self) -> int:
        return self.num_heads * self.head_dim


def read_architecture(directory: Path) -> Architecture:
    """Raises Unsupported, and ModelSourceError where config.json cannot be read or lacks what it must say."""
    file = directory / "config.json"
    if not file.is_file():
        raise ModelSourceError(f"the model directory {directory} has no config.json")
    try:
        return architecture_of(read_json(file))
    except KeyError as missing:
        raise ModelSourceError(f"{file} has no {missing.args[0]}") from None
    except ModelSourceError:
        raise
    except (TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise ModelSourceError(f"{file} cannot be understood: {error}") from error


def architecture_of(config: dict[str, Any]) -> Architecture:
    """The architecture that a config.json describes. Raises Unsupported."""
    model_type = config.get("model_type")
    if model_type not in _MODEL_TYPES:
        raise Unsupported(f"its architecture is {model_type}, not one of {', '.join(_MODEL_TYPES)}")
    _refuse_variants(config)
    num_heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // num_heads
    num_kv_heads = config.get("num_key_value_heads") or num_heads
    if head_dim % 16:
        raise Unsupported(f"its head size {head_dim} is no multiple of 16")
    if num_heads % num_kv_heads:
        raise Unsupported(f"its {num_heads} heads cannot share {num_kv_heads} key heads evenly")
    return Architecture(
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=config["vocab_size"],
        epsilon=config.get("rms_norm_eps", 1e-6),
        tied_embeddings=config.get("tie_word_embeddings", False),
        qkv_bias=model_type == "qwen2",
        inverse_frequencies=_inverse_frequencies(config, head_dim),
    )


def _refuse_variants(config: dict[str, Any]) -> None:
    """Raises Unsupported where the configuration asks for something that the kernels do not do."""
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    layer_types = set(config.get("layer_types") or ())
    variants = {
        f"its activation is {config.get('hidden_act')}": config.get("hidden_act", "silu") != "silu",
        "its attention has biases": config.get("attention_bias", False),
        "its feed-forward layers have biases": config.get("mlp_bias", False),
        "its attention has a sliding window": window is not None or layer_types - {"full_attention"},
        "its weights are quantised already": "quantization_config" in config,
        "its rotary embedding is partial": config.get("partial_rotary_factor", 1.0) != 1.0,
    }
    for reason, applies in variants.items():
        if applies:
            raise Unsupported(reason)


def _inverse_frequencies(config: dict[str, Any], head_dim: int) -> tuple[float, ...]:
    """Plain, linear and Llama 3's rotary embeddings, as in transformers' `modeling_rope_utils.py`."""
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
    frequencies = tuple(theta ** (-2 * i / head_dim) for i in range(head_dim // 2))
    match rope.get("rope_type", rope.get("type", "default")):
        case "default":
            return frequencies
        case "linear":
            return tuple(frequency / rope["factor"] for frequency in frequencies)
        case "llama3":
            return tuple(_llama3_frequency(frequency, rope) for frequency in frequencies)
        case other:
            raise Unsupported(f"its rotary embedding is {other}")


def _llama3_frequency(frequency: float, rope: dict[str, Any]) -> float:
    """Long wavelengths are stretched by the factor, short ones stay, those between are blended."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)
    if turns > high:
        return frequency
    if turns < low:
        return float(frequency / rope["factor"])
    smooth = (turns - low) / (high - low)
    return float((1 - smooth) * frequency / rope["factor"] + smooth * frequency)
