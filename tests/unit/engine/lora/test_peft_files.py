"""Adapters from disk: what peft writes is read as peft computes it, and everything else is refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from deployments.engine.lora.peft_files import check_fits, read_adapter
from deployments.errors import InvalidAdapter
from deployments.types import AdapterRef
from tests.factories import make_config
from tests.unit.engine.adapters import CONFIG, PEFT_WARNING, adapter_tensors, make_adapter, write_adapter

REF = AdapterRef("mine", "abc")
LINEARS = {"model.layers.0.self_attn.q_proj": (64, 64), "model.layers.0.self_attn.v_proj": (32, 64)}
Q_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
Q_B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


def good_tensors() -> dict[str, np.ndarray[Any, Any]]:
    return adapter_tensors(make_adapter(LINEARS))


@pytest.mark.filterwarnings(PEFT_WARNING)
@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_reads_what_peft_writes(tmp_path: Path, use_rslora: bool, dtype: torch.dtype) -> None:
    model = transformers.AutoModelForCausalLM.from_config(make_config("llama", 384))
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = peft.LoraConfig(
        r=6, lora_alpha=9, use_rslora=use_rslora, target_modules=targets, task_type="CAUSAL_LM", lora_dropout=0.1
    )
    trained = peft.get_peft_model(model, config)
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    trained.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)

    adapter = read_adapter(tmp_path, REF)

    assert adapter.ref == REF
    assert len(adapter.pairs) == 14
    for path, pair in adapter.pairs.items():
        layer = trained.base_model.model.get_submodule(path)
        for parameter in (layer.lora_A.default.weight, layer.lora_B.default.weight):
            parameter.data = parameter.data.to(dtype).float()
        expected = layer.get_delta_weight("default").detach()
        np.testing.assert_allclose(pair.b @ pair.a, expected.numpy(), rtol=1e-5, atol=1e-6)
        assert pair.a.dtype == pair.b.dtype == np.float32
        assert pair.rank == 6


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"peft_type": "IA3"}, "peft_type"),
        ({"task_type": "SEQ_CLS"}, "task_type"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["experts.w"]}, "target_parameters"),
        ({"something_of_tomorrow": True}, "something_of_tomorrow"),
        ({"\ud800": True}, r"'\ud800'"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"r": 0}, "r is 0"),
        ({"r": 257}, "r is 257"),
        ({"r": True}, "r is True"),
        ({"r": "4"}, "r is '4'"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"lora_alpha": 10**400}, "lora_alpha"),
        ({"use_rslora": "yes"}, "use_rslora"),
    ],
)
def test_what_would_be_computed_otherwise_is_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    directory = write_adapter(tmp_path, good_tensors(), {**CONFIG, **change})

    with pytest.raises(InvalidAdapter, match=r"adapter_config\.json") as error:
        read_adapter(directory, REF)
    assert named in error.value.message


@pytest.mark.parametrize("text", ["", "[1]", "{", "null", "[" * 100_000, "\ud800".encode("utf-8", "surrogatepass")])
def test_broken_configuration_is_refused(tmp_path: Path, text: str | bytes) -> None:
    directory = write_adapter(tmp_path, good_tensors())
    (directory / "adapter_config.json").write_bytes(text if isinstance(text, bytes) else text.encode())

    with pytest.raises(InvalidAdapter, match=r"adapter_config\.json"):
        read_adapter(directory, REF)


def nan_in(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    changed = array.copy()
    changed[0, 0] = np.nan
    return changed


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({Q_A: None}, "q_proj has no lora_A"),
        ({Q_B: None}, "q_proj has no lora_B"),
        ({Q_A: lambda a: a[:3]}, "rank 4"),
        ({Q_A: lambda a: a.ravel()}, "no matrix"),
        ({Q_A: lambda _: np.ones([1] * 40, np.float32)}, "no matrix"),
        ({Q_B: lambda b: b[:, :3]}, "rank 4"),
        ({Q_B: lambda b: b[:0]}, "no matrix"),
        ({Q_A: nan_in}, "finite"),
        ({Q_B: lambda b: b * np.float32(1e38) * 3}, "finite"),
        ({Q_A: lambda a: a.astype(np.float64)}, "F64"),
        ({Q_A: lambda a: a.astype(np.int8)}, "I8"),
        ({"base_model.model.lm_head.weight": lambda _: np.ones((4, 4), np.float32)}, "lm_head.weight"),
        ({Q_A.replace("lora_A", "lora_magnitude_vector"): lambda _: np.ones(4, np.float32)}, "lora_magnitude_vector"),
    ],
)
def test_broken_tensors_are_refused_by_name(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    tensors = good_tensors()
    for name, function in change.items():
        if function is None:
            del tensors[name]
        else:
            tensors[name] = np.ascontiguousarray(function(tensors.get(name)))
    directory = write_adapter(tmp_path, tensors)

    with pytest.raises(InvalidAdapter, match=r"adapter_model\.safetensors") as error:
        read_adapter(directory, REF)
    assert named in error.value.message


def test_no_tensors_no_file_and_other_formats_are_refused(tmp_path: Path) -> None:
    directory = write_adapter(tmp_path, {})
    with pytest.raises(InvalidAdapter, match="no tensors"):
        read_adapter(directory, REF)
    file = directory / "adapter_model.safetensors"
    torch.save({"weight": torch.ones(3)}, file)
    with pytest.raises(InvalidAdapter, match="no safetensors file"):
        read_adapter(directory, REF)
    file.rename(directory / "adapter_model.bin")
    with pytest.raises(InvalidAdapter, match="cannot be read"):
        read_adapter(directory, REF)


def test_header_that_promises_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    header = json.dumps({Q_A: {"dtype": "F32", "shape": [1 << 40, 64], "data_offsets": [0, 1 << 48]}}).encode()
    directory = write_adapter(tmp_path, good_tensors())
    (directory / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)

    with pytest.raises(InvalidAdapter, match="no safetensors file"):
        read_adapter(directory, REF)


def test_size_is_bounded_before_reading(tmp_path: Path) -> None:
    directory = write_adapter(tmp_path, good_tensors())
    size = (directory / "adapter_model.safetensors").stat().st_size

    assert read_adapter(directory, REF, max_bytes=size)
    with pytest.raises(InvalidAdapter, match=f"{size} bytes"):
        read_adapter(directory, REF, max_bytes=size - 1)


def test_adapter_of_another_model_does_not_fit() -> None:
    adapter = make_adapter(LINEARS)

    check_fits(adapter, LINEARS)
    with pytest.raises(InvalidAdapter, match=r"no linear model\.layers\.0\.self_attn\.v_proj"):
        check_fits(adapter, {"model.layers.0.self_attn.q_proj": (64, 64)})
    with pytest.raises(InvalidAdapter, match=r"q_proj: the adapter's 64 -> 64 is not 128 -> 64"):
        check_fits(adapter, {**LINEARS, "model.layers.0.self_attn.q_proj": (64, 128)})
