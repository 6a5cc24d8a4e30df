"""Random adapters: in memory, as the engine takes them, and on disk, as peft writes them."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from deployments.engine.protocol import LoadedAdapter, LowRankPair
from deployments.types import AdapterRef

# peft asks transformers for an attribute by its former name.
PEFT_WARNING = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"

CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj"],
    "bias": "none",
    "use_rslora": False,
    "use_dora": False,
    "modules_to_save": None,
    "rank_pattern": {},
}


def make_adapter(
    linears: Mapping[str, tuple[int, int]],
    *,
    rank: int = 4,
    seed: int = 0,
    size: float = 0.3,
    targets: Collection[str] | None = None,
    digest: str | None = None,
) -> LoadedAdapter:
    """linears: (out, in) by path; `targets` picks some by the last part of the path."""
    random = np.random.default_rng(seed)
    pairs = {
        path: LowRankPair(
            (random.standard_normal((rank, size_in)) / size_in**0.5).astype(np.float32),
            (random.standard_normal((size_out, rank)) * size / rank**0.5).astype(np.float32),
        )
        for path, (size_out, size_in) in linears.items()
        if targets is None or path.rsplit(".", 1)[1] in targets
    }
    return LoadedAdapter(AdapterRef(f"adapter-{seed}", digest or f"{seed}-{rank}"), pairs)


def adapter_tensors(adapter: LoadedAdapter) -> dict[str, np.ndarray[Any, Any]]:
    """By the names that peft gives them; the scale is 1."""
    tensors = {}
    for path, pair in adapter.pairs.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = pair.a
        tensors[f"base_model.model.{path}.lora_B.weight"] = pair.b
    return tensors


def config_of(adapter: LoadedAdapter) -> dict[str, Any]:
    """A configuration with which peft computes what the pairs say."""
    rank = next(iter(adapter.pairs.values())).rank
    return {**CONFIG, "r": rank, "lora_alpha": rank, "target_modules": list(adapter.pairs)}


def write_adapter(
    directory: Path, tensors: Mapping[str, np.ndarray[Any, Any]], config: Mapping[str, Any] = CONFIG
) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps(dict(config)))
    save_file(dict(tensors), directory / "adapter_model.safetensors")
    return directory
