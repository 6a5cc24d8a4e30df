"""The adapter that is trained: put into the base model, read out of it, written as peft's files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from deployments.training import TrainingParams

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"


def load_base(directory: Path, device: torch.device) -> Any:
    """The model of the directory, with its weights as they are computed with: bfloat16 on a GPU, float32 on CPUs.

    Raises OSError or ValueError, with a sentence, when the directory does not hold a model that transformers knows.
    """
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    # Code that a model directory brings along is never run.
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, trust_remote_code=False, use_safetensors=True, local_files_only=True
    )
    return model.to(device)


def attach_adapter(model: Any, params: TrainingParams) -> PeftModel:
    """Low-rank pairs on all linears but the head, in float32, begun from the seed; nothing else can be trained then."""
    config = LoraConfig(
        r=params.rank,
        lora_alpha=params.alpha,  # type: ignore[arg-type]  # a float computes as well
        lora_dropout=params.dropout,
        target_modules="all-linear",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(params.seed)
        adapted = peft.get_peft_model(model, config)
    assert isinstance(adapted, PeftModel)  # noqa: S101
    return adapted


def adapter_tensors(model: PeftModel) -> dict[str, Tensor]:
    """Copies on the CPU, by the names of peft's file."""
    state: Mapping[str, Tensor] = peft.get_peft_model_state_dict(model)
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in sorted(state.items())}


def write_adapter(model: PeftModel, directory: Path) -> list[Path]:
    """Writes the two files of an adapter, which say nothing of this machine; returns their paths."""
    config = {
        **model.peft_config["default"].to_dict(),
        "base_model_name_or_path": None,
        "revision": None,
        "inference_mode": True,
    }
    content = json.dumps(config, indent=2, sort_keys=True, default=sorted)
    (directory / CONFIG_NAME).write_text(content, encoding="utf-8")
    save_file(adapter_tensors(model), directory / WEIGHTS_NAME, metadata={"format": "pt"})
    return [directory / CONFIG_NAME, directory / WEIGHTS_NAME]


def read_adapter_into(model: PeftModel, directory: Path) -> None:
    """Takes over the weights that `write_adapter` wrote. Raises ValueError if they are of another shape."""
    tensors = load_file(directory / WEIGHTS_NAME)
    expected = {name: tensor.shape for name, tensor in peft.get_peft_model_state_dict(model).items()}
    if {name: tensor.shape for name, tensor in tensors.items()} != expected:
        raise ValueError("the adapter is not one of this model with these parameters")
    peft.set_peft_model_state_dict(model, tensors)
