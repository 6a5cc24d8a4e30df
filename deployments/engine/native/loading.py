"""Decides whether the native kernels run a model, and prepares what they need: quantised weights, compiled kernels."""

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.config import EngineConfig
from deployments.engine.native.architecture import PAGE_TOKENS, Unsupported, read_architecture
from deployments.engine.native.build import compiled_kernels, is_compiled, load_kernels, missing_on_this_machine
from deployments.engine.native.weight_file import read_metadata
from deployments.model_preparation.cache import MANIFEST, prepared
from deployments.start_phases import StartPhases

if TYPE_CHECKING:
    from deployments.engine.native.native_runner import NativeRunner

WEIGHTS_NAME = "int8.safetensors"
FORMAT = "tritext-int8-2"

logger = logging.getLogger(__name__)


def unsupported(directory: Path, config: EngineConfig) -> str | None:
    """Why the native kernels do not run this model, this configuration or on this machine; None if they do.

    Raises ModelSourceError without a readable config.json.
    """
    return _refused_at_a_glance(directory, config) or ("it runs on a GPU" if _runs_on_gpu(config) else None)


def _refused_at_a_glance(directory: Path, config: EngineConfig) -> str | None:
    """What `unsupported` can tell without torch, which takes a second to import."""
    if config.dtype != "auto":
        return f"the configuration asks for {config.dtype}"
    if config.device == "cuda":
        return "it runs on a GPU"
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


def _runs_on_gpu(config: EngineConfig) -> bool:
    if config.device != "auto":
        return config.device == "cuda"
    import torch

    return torch.cuda.is_available()


def needs_preparing(directory: Path, config: EngineConfig, home: Path) -> bool:
    """Whether `prepare` may have something to do: quantised weights or compiled kernels are missing. Imports no torch.

    Raises ModelSourceError without a readable config.json.
    """
    if _refused_at_a_glance(directory, config) is not None:
        return False
    return not is_compiled(home / "kernels") or not any(
        weights.is_file() for weights in (directory / WEIGHTS_NAME, _prepared_directory(directory, home) / WEIGHTS_NAME)
    )


def prepare(directory: Path, config: EngineConfig, home: Path, *, report: Callable[[str], None] = logger.info) -> Path:
    """Compiles the kernels and quantises the weights of a model directory into `home`, once; returns the weights' file.

    Raises Unsupported, with the reason, where another runner must take the model; OSError or ValueError
    (ModelSourceError among them) where the model's files are not what they should be.
    """
    reason = unsupported(directory, config)
    if reason is not None:
        raise Unsupported(reason)
    if not is_compiled(home / "kernels"):
        report("compiling the kernels for this processor")
    compiled_kernels(home / "kernels")
    weights = directory / WEIGHTS_NAME
    if not weights.is_file():
        target = _prepared_directory(directory, home)
        weights = (
            prepared(target, lambda new: write_quantized(directory, new / WEIGHTS_NAME, report), report=report)
            / WEIGHTS_NAME
        )
    if read_metadata(weights).get("format") != FORMAT:
        raise Unsupported(f"{weights} was prepared by another version")
    return weights


def load_native_runner(
    directory: Path,
    config: EngineConfig,
    home: Path,
    *,
    report: Callable[[str], None] = logger.info,
    phases: StartPhases | None = None,
) -> "NativeRunner":
    """The runner of a model directory, which is prepared first where it is not. Raises what `prepare` raises."""
    phases = phases or StartPhases()
    with phases.within("preparing"):
        weights = prepare(directory, config, home, report=report)
    with phases.within("imports"):
        from deployments.engine.native.native_runner import NativeRunner

    with phases.within("kernels"):
        kernels = load_kernels(home / "kernels")
    with phases.within("weights"):
        return NativeRunner(read_architecture(directory), weights, config, kernels)


def _prepared_directory(directory: Path, home: Path) -> Path:
    return home / "models" / f"{directory.name}-int8-{_identity(directory)}"


def prepare_directory(source: Path, target: Path, *, report: Callable[[str], None] = logger.info) -> None:
    """Writes a model directory that starts at once: the tokenizer and configuration of `source`, and int8 weights.

    `target` is made, whole or not at all; FileExistsError where it holds something. Raises Unsupported, OSError or
    ValueError.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists and is no empty directory")
    read_architecture(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        directory = Path(scratch) / "model"
        directory.mkdir()
        for file in source.iterdir():
            if file.is_file() and file.name != MANIFEST and not _holds_weights(file):
                shutil.copy2(file, directory / file.name)
        write_quantized(source, directory / WEIGHTS_NAME, report)
        directory.rename(target)


def _holds_weights(file: Path) -> bool:
    return file.suffix in (".safetensors", ".bin", ".gguf") or ".index." in file.name


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
