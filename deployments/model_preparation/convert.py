"""GGUF to Hugging Face layout, for Llama models with a GPT-2 style tokenizer. Numpy only."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, dequantize
from safetensors.numpy import save_file

from deployments.model_files import ModelSourceError
from deployments.model_preparation.cache import sha256
from deployments.model_preparation.gguf_tokenizer import build_tokenizer
from deployments.model_preparation.packages import PackagedModel

_TENSOR_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

Array = np.ndarray[Any, np.dtype[np.float32]]


def convert(model: PackagedModel, directory: Path, report: Callable[[str], None]) -> None:
    """Write the model's files into the empty `directory`. Raises ModelSourceError."""
    report(f"preparing {model.name}: checking {model.gguf_file.name}")
    if sha256(model.gguf_file) != model.sha256:
        raise ModelSourceError(f"{model.gguf_file} is damaged: its SHA-256 is not {model.sha256}; install it again")
    report(f"preparing {model.name}: reading the tokenizer")
    reader = GGUFReader(model.gguf_file)
    metadata = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    if metadata["general.architecture"] != "llama":
        raise ModelSourceError(f"{model.gguf_file} is no Llama model, but {metadata['general.architecture']}")
    tokenizer = build_tokenizer(metadata)
    is_tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    config = _config(metadata, is_tied=is_tied)

    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(metadata["tokenizer.chat_template"], encoding="utf-8")
    _write_json(directory / "tokenizer_config.json", _tokenizer_config(metadata))
    _write_json(directory / "config.json", config)
    eos_token_ids = [tokenizer.token_to_id(token) for token in model.eos_tokens]
    _write_json(
        directory / "generation_config.json",
        {
            "bos_token_id": config["bos_token_id"],
            "eos_token_id": eos_token_ids,
            "pad_token_id": config["pad_token_id"],
        },
    )
    report(f"preparing {model.name}: converting {len(reader.tensors)} tensors")
    tensors = {_hugging_face_name(tensor.name): _values(tensor, config) for tensor in reader.tensors}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    report(f"preparing {model.name}: done")


def _config(metadata: dict[str, Any], *, is_tied: bool) -> dict[str, Any]:
    num_heads = metadata["llama.attention.head_count"]
    hidden_size = metadata["llama.embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden_size,
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": num_heads,
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "head_dim": metadata.get("llama.attention.key_length", hidden_size // num_heads),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": metadata["llama.context_length"],
        "rms_norm_eps": _shortest(metadata["llama.attention.layer_norm_rms_epsilon"]),
        "rope_theta": metadata["llama.rope.freq_base"],
        "rope_scaling": None,
        "vocab_size": metadata.get("llama.vocab_size", len(metadata["tokenizer.ggml.tokens"])),
        "tie_word_embeddings": is_tied,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
        "dtype": "float32",
    }


def _shortest(value: float) -> float:
    """GGUF stores float32: the shortest decimal with that value, 1e-05 and not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _tokenizer_config(metadata: dict[str, Any]) -> dict[str, Any]:
    tokens = metadata["tokenizer.ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[metadata["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[metadata["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[metadata["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[metadata["tokenizer.ggml.unknown_token_id"]],
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata["llama.context_length"],
    }


def _hugging_face_name(name: str) -> str:
    """`blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj.weight`."""
    match name.split("."):
        case ["blk", layer, part, suffix] if part in _TENSOR_NAMES:
            return f"model.layers.{layer}.{_TENSOR_NAMES[part]}.{suffix}"
        case [part, suffix] if part in _TENSOR_NAMES:
            return f"{_TENSOR_NAMES[part]}.{suffix}"
    raise ModelSourceError(f"the GGUF file holds a tensor that a Llama model does not have: {name}")


def _values(tensor: Any, config: dict[str, Any]) -> Array:
    values: Array = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
    if ".attn_q." in tensor.name:
        return _in_halves(values, config["num_attention_heads"])
    if ".attn_k." in tensor.name:
        return _in_halves(values, config["num_key_value_heads"])
    return np.ascontiguousarray(values)


def _in_halves(rows: Array, num_heads: int) -> Array:
    """Undo llama.cpp's order of the query and key rows.

    Rotary embedding turns pairs of dimensions. llama.cpp stores the two of a pair next to each other, Hugging Face
    the first ones of all pairs of a head and then the second ones (`permute` in llama.cpp's convert_hf_to_gguf.py).
    """
    num_pairs = rows.shape[0] // num_heads // 2
    by_pair = rows.reshape(num_heads, num_pairs, 2, *rows.shape[1:])
    return np.ascontiguousarray(by_pair.swapaxes(1, 2).reshape(rows.shape))


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
