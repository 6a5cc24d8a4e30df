"""The state of a training between two steps, as files: safetensors and JSON, nothing that runs when it is read.

The random state is not among them: what is random in a step is drawn from a generator that is seeded for this step
(see trainer.py), and the order of the data is a function of the seed, so the number of the step says both.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deployments.fine_tune.lora import read_adapter_into, write_adapter

OPTIMIZER_NAME = "optimizer.safetensors"
STATE_NAME = "training_state.json"

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class TrainingState:
    """step: optimiser steps done. run: what the training is of; only an equal one can go on from here.
    scheduler, param_groups: of torch's scheduler and optimiser; floats are the same after JSON."""

    step: int
    run: str
    scheduler: Mapping[str, Any]
    param_groups: list[dict[str, Any]]
    format: int = _FORMAT


def write_checkpoint(
    directory: Path, *, step: int, run: str, model: PeftModel, optimizer: Any, scheduler: Any
) -> list[Path]:
    """Writes the files; returns their paths. The adapter's are those of a finished one."""
    content = optimizer.state_dict()
    names = _parameter_names(model, optimizer)
    tensors = {
        f"{names[index]}.{key}": value.detach().to("cpu", copy=True).contiguous()
        for index, values in content["state"].items()
        for key, value in values.items()
    }
    save_file(tensors, directory / OPTIMIZER_NAME)
    state = TrainingState(step, run, scheduler.state_dict(), content["param_groups"])
    (directory / STATE_NAME).write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
    return [*write_adapter(model, directory), directory / OPTIMIZER_NAME, directory / STATE_NAME]


def read_state(directory: Path) -> TrainingState:
    """Raises ValueError if it is not understood."""
    try:
        state = TrainingState(**json.loads((directory / STATE_NAME).read_text(encoding="utf-8")))
    except (OSError, TypeError) as error:
        raise ValueError(f"{STATE_NAME} is not understood: {type(error).__name__}") from error
    if state.format != _FORMAT or type(state.step) is not int:
        raise ValueError(f"{STATE_NAME} has the format {state.format!r:.20}, not {_FORMAT}")
    return state


def read_adapter(directory: Path, model: PeftModel) -> None:
    """Raises ValueError if the adapter is of another shape."""
    read_adapter_into(model, directory)


def read_optimizer(directory: Path, *, model: PeftModel, optimizer: Any, scheduler: Any) -> None:
    """Takes over the state of both. Raises ValueError if it is that of other parameters."""
    saved = read_state(directory)
    values: dict[str, dict[str, Tensor]] = {}
    for name, tensor in load_file(directory / OPTIMIZER_NAME).items():
        parameter, _, key = name.rpartition(".")
        values.setdefault(parameter, {})[key] = tensor
    names = _parameter_names(model, optimizer)
    if values and set(values) != set(names.values()):
        raise ValueError("the optimiser's state is not of this model's adapter")
    state = {index: values[name] for index, name in names.items() if name in values}
    optimizer.load_state_dict({"state": state, "param_groups": saved.param_groups})
    scheduler.load_state_dict(dict(saved.scheduler))


def _parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[int, str]:
    """By the number under which the optimiser's state has the parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {index: names[id(parameter)] for index, parameter in enumerate(parameters)}
