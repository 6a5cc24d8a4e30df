"""Small random models of the Llama family, on disk as a user would have them."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from deployments.config import EngineConfig
from deployments.engine.native.architecture import architecture_of
from deployments.engine.native.build import load_kernels
from deployments.engine.native.native_runner import NativeRunner
from deployments.engine.native.quantize import quantize
from deployments.engine.scheduler import Batch, ScheduledSequence
from deployments.engine.sequence import Sequence
from deployments.types import SamplingParams

TINY: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "vocab_size": 101,
    "tie_word_embeddings": True,
}


def write_model(directory: Path, seed: int = 0, **config: Any) -> Path:
    """A directory with config.json and model.safetensors; `config` over TINY."""
    full = {**TINY, **config}
    a = architecture_of(full)
    random = torch.Generator().manual_seed(seed)

    def matrix(n: int, k: int) -> torch.Tensor:
        return torch.randn((n, k), generator=random) / math.sqrt(k)

    def norm() -> torch.Tensor:
        return 1 + 0.3 * torch.randn(a.hidden_size, generator=random)

    tensors = {"model.embed_tokens.weight": matrix(a.vocab_size, a.hidden_size) * 4, "model.norm.weight": norm()}
    if not a.tied_embeddings:
        tensors["lm_head.weight"] = matrix(a.vocab_size, a.hidden_size)
    kv_size = a.num_kv_heads * a.head_dim
    for index in range(a.num_layers):
        prefix = f"model.layers.{index}."
        tensors[f"{prefix}input_layernorm.weight"] = norm()
        tensors[f"{prefix}post_attention_layernorm.weight"] = norm()
        for part, size in (("q", a.attention_size), ("k", kv_size), ("v", kv_size)):
            tensors[f"{prefix}self_attn.{part}_proj.weight"] = matrix(size, a.hidden_size)
            if a.qkv_bias:
                tensors[f"{prefix}self_attn.{part}_proj.bias"] = torch.randn(size, generator=random)
        tensors[f"{prefix}self_attn.o_proj.weight"] = matrix(a.hidden_size, a.attention_size)
        tensors[f"{prefix}mlp.gate_proj.weight"] = matrix(a.intermediate_size, a.hidden_size)
        tensors[f"{prefix}mlp.up_proj.weight"] = matrix(a.intermediate_size, a.hidden_size)
        tensors[f"{prefix}mlp.down_proj.weight"] = matrix(a.hidden_size, a.intermediate_size)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(full))
    save_file(tensors, directory / "model.safetensors")
    return directory


def quantized(directory: Path) -> Path:
    """The file of int8 weights of the model in `directory`."""
    a = architecture_of(json.loads((directory / "config.json").read_text()))
    file = directory / "int8.safetensors"
    if not file.exists():
        quantize(directory, a, [token_ids(1, 40, a.vocab_size)], file, format_name="test")
    return file


def token_ids(seed: int, length: int, vocab_size: int) -> list[int]:
    return torch.randint(vocab_size, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def make_runner(directory: Path, kernel_cache: Path, *, num_threads: int = 1, block_size: int = 16) -> NativeRunner:
    a = architecture_of(json.loads((directory / "config.json").read_text()))
    config = EngineConfig(num_threads=num_threads, block_size=block_size, kv_cache_bytes=4 * 1024 * 1024)
    return NativeRunner(a, quantized(directory), config, load_kernels(kernel_cache))


def make_sequence(tokens: list[int], blocks: list[int], *, all_logits: bool = True, key: int = 0) -> Sequence:
    return Sequence(
        key,
        key,
        0,
        tuple(tokens),
        SamplingParams(),
        frozenset(),
        10_000,
        block_table=blocks,
        wants_prompt_logprobs=all_logits,
    )


def logits_in_one_step(
    runner: NativeRunner, tokens: list[int], *, first_block: int = 0, block_size: int = 16
) -> torch.Tensor:
    """The logits of all positions of one sequence, computed alone."""
    blocks = list(range(first_block, first_block + -(-len(tokens) // block_size)))
    sequence = make_sequence(tokens, blocks)
    return runner.run(Batch((ScheduledSequence(sequence, 0, len(tokens)),)))
