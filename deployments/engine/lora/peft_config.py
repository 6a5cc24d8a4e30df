"""Reads `adapter_config.json` of peft: what of it the engine computes, and what it must refuse. Knows no tensors."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.errors import InvalidAdapter

CONFIG_NAME = "adapter_config.json"
MAX_RANK = 256

_MAX_ALPHA = 1_000_000
_MAX_BYTES = 1024 * 1024

# What says how the adapter was made or trained, and nothing about what it computes.
_ABOUT_TRAINING = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config"),
        *(
            "exclude_modules",
            "fan_in_fan_out",
            "inference_mode",
            "layers_pattern",
            "layers_to_transform",
            "loftq_config",
        ),
        *("lora_dropout", "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size", "revision"),
        "target_modules",
    }
)
_READ = frozenset({"r", "lora_alpha", "use_rslora", "peft_type", "task_type", "init_lora_weights", "bias"})
# These start from a base model whose weights they change: the adapter alone is not the whole difference.
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")


@dataclass(frozen=True, slots=True)
class LoraScale:
    """rank: of every pair. scale: what the product of the pairs is multiplied with."""

    rank: int
    scale: float


def read_config(directory: Path) -> LoraScale:
    """Raises InvalidAdapter, naming the key, for whatever the engine would not compute as peft does."""
    config = _read_json(directory / CONFIG_NAME)
    if config.get("peft_type") != "LORA":
        raise _refused(f"peft_type is {config.get('peft_type')!r}, not 'LORA'")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise _refused(f"task_type is {config['task_type']!r}, not 'CAUSAL_LM'")
    if config.get("bias", "none") != "none":
        raise _refused(f"bias is {config['bias']!r}; adapters that change biases are not supported")
    started = config.get("init_lora_weights")
    if isinstance(started, str) and started.startswith(_CHANGES_THE_BASE):
        raise _refused(f"init_lora_weights is {started!r}, which changes the base model's own weights")
    for key, value in config.items():
        # Whatever else is switched on (DoRA, modules_to_save, patterns of ranks, what comes next) computes otherwise.
        if key not in _READ | _ABOUT_TRAINING and value:
            raise _refused(f"{key!r} is {value!r}, which is not supported")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= MAX_RANK:
        raise _refused(f"r is {rank!r}, not a whole number from 1 to {MAX_RANK}")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha <= _MAX_ALPHA:
        raise _refused(f"lora_alpha is {alpha!r}, not a number above 0 and up to {_MAX_ALPHA}")
    use_rslora = config.get("use_rslora", False)
    if not isinstance(use_rslora, bool):
        raise _refused(f"use_rslora is {use_rslora!r}, neither true nor false")
    return LoraScale(rank, alpha / (math.sqrt(rank) if use_rslora else rank))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise _refused(f"it is longer than {_MAX_BYTES} bytes")
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _refused(f"it cannot be read: {type(error).__name__}") from error
    if not isinstance(config, dict):
        raise _refused("it is no JSON object")
    return config


def _refused(reason: str) -> InvalidAdapter:
    return InvalidAdapter(f"{CONFIG_NAME}: {reason[:500]}")
