"""Which models the native kernels take, and how their rotary embeddings are read."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from deployments.engine.native.architecture import Unsupported, architecture_of, read_architecture
from deployments.model_files import ModelSourceError

from .models import TINY


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"model_type": None}, "architecture"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"attention_bias": True}, "biases"),
        ({"mlp_bias": True}, "biases"),
        ({"sliding_window": 4096}, "sliding window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding window"),
        ({"quantization_config": {"bits": 4}}, "quantised already"),
        ({"partial_rotary_factor": 0.5}, "partial"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"head_dim": 24}, "multiple of 16"),
        ({"num_key_value_heads": 3}, "share"),
    ],
)
def test_other_models_are_refused_with_the_reason(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        architecture_of({**TINY, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "mistral", "sliding_window": None},
        {"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False},
        {"layer_types": ["full_attention", "full_attention"]},
    ],
)
def test_relatives_without_a_window_are_taken(change: dict[str, Any]) -> None:
    assert architecture_of({**TINY, **change}).num_layers == 2


def test_head_size_and_key_heads_have_defaults() -> None:
    config = {name: value for name, value in TINY.items() if name not in ("head_dim", "num_key_value_heads")}

    architecture = architecture_of(config)

    assert (architecture.head_dim, architecture.num_kv_heads) == (16, 4)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 5000.0},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
    ids=lambda rope: str(rope["rope_type"]),
)
def test_rotary_frequencies_are_those_of_transformers(rope: dict[str, Any]) -> None:
    config = {**TINY, "head_dim": 64, "rope_parameters": rope, "max_position_embeddings": 512}
    theirs = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(transformers.LlamaConfig(**config))

    ours = torch.tensor(architecture_of(config).inverse_frequencies)

    torch.testing.assert_close(ours, theirs.inv_freq, rtol=1e-5, atol=0)


def test_a_missing_configuration_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match=r"no config\.json"):
        read_architecture(tmp_path)
