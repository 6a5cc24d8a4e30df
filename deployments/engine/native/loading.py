"""Decides whether the native kernels run a model, and prepares what they need: quantised weights, compiled kernels."""

import hashlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from deployments.config import EngineConfig
from deployments.engine.native.architecture import Unsupported, read_architecture
from deployments.engine.native.build import load_kernels, missing_on_this_machine
from deployments.engine.native.native_runner import PAGE_TOKENS, NativeRunner
from deployments.engine.native.weight_file import read_metadata
from deployments.model_preparation.cache import prepared

WEIGHTS_NAME = "int8.safetensors"
FORMAT = "tritext-int8-1"

logger = logging.getLogger(__name__)


def unsupported(directory: Path, config: EngineConfig) -> str | None:
    """Why the native kernels do not run this model, this configuration or on this machine; None if they do.

    Cheap: reads config.json and asks the processor. Raises OSError or ValueError without a readable config.json.
    """
    if config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available()):
        return "it runs on a GPU"
    if config.dtype != "auto":
        return f"the configuration asks for {config.dtype}"
    if config.block_size % PAGE_TOKENS:
        return f"its cache has pages of {PAGE_TOKENS} tokens, which do not fit blocks of {config.block_size}"
    reason = missing_on_this_machine()
    if reason is not None:
        return reason
    try:
        read_architecture(directory)
    except Unsupported as refused:
        return str(refused)
    return None


def load_native_runner(
    directory: Path, config: EngineConfig, home: Path, *, report: Callable[[str], None] = logger.info
) -> NativeRunner:
    """The runner of a model directory. The first time it compiles the kernels and quantises the weights into `home`.

    Raises Unsupported, with the reason, where another runner must take the model; OSError or ValueError where the
    model's files are not what they should be.
    """
    reason = unsupported(directory, config)
    if reason is not None:
        raise Unsupported(reason)
    kernels = load_kernels(home / "kernels")
    weights = directory / WEIGHTS_NAME
    if not weights.is_file():
        target = home / "models" / f"{directory.name}-int8-{_identity(directory)}"
        made = prepared(target, lambda new: write_quantized(directory, new / WEIGHTS_NAME, report), report=report)
        weights = made / WEIGHTS_NAME
    if read_metadata(weights).get("format") != FORMAT:
        raise Unsupported(f"{weights} was prepared by another version")
    return NativeRunner(read_architecture(directory), weights, config, kernels)


def prepare_directory(source: Path, target: Path, report: Callable[[str], None] = logger.info) -> None:
    """Writes a model directory that starts at once: the tokenizer and configuration of `source`, and int8 weights.

    `target` must exist. Raises Unsupported, OSError or ValueError.
    """
    for file in source.iterdir():
        if file.is_file() and file.suffix not in (".safetensors", ".bin", ".gguf") and ".index." not in file.name:
            shutil.copy2(file, target / file.name)
    write_quantized(source, target / WEIGHTS_NAME, report)


def write_quantized(directory: Path, target: Path, report: Callable[[str], None]) -> None:
    """Quantises the weights of a model directory into the file `target`. Raises Unsupported, OSError or ValueError."""
    from deployments.engine.native.calibration import calibration_documents  # only the first start needs these
    from deployments.engine.native.quantize import quantize

    report(f"preparing {directory.name}: quantising the weights to int8")
    quantize(directory, read_architecture(directory), calibration_documents(directory), target, format_name=FORMAT)


def _identity(directory: Path) -> str:
    """Changes when the model's files do."""
    digest = hashlib.sha256(FORMAT.encode() + (directory / "config.json").read_bytes())
    for file in sorted(directory.glob("model*.safetensors")):
        status = file.stat()
        digest.update(f"\0{file.name}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    return digest.hexdigest()[:12]
