"""Reads an adapter's directory as peft writes it: `adapter_config.json` and `adapter_model.safetensors`, nothing else.

The files are a stranger's. Nothing in them is run, nothing is read beyond a bound, and what is not understood is
refused. Knows no model: whether the adapter fits one is asked by `check_fits`.
"""

import json
import mmap
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from deployments.engine.lora.peft_config import LoraScale, read_config
from deployments.engine.protocol import Array, LoadedAdapter, LowRankPair
from deployments.errors import InvalidAdapter
from deployments.types import AdapterRef

WEIGHTS_NAME = "adapter_model.safetensors"
MAX_BYTES = 1024**3

_TENSOR_NAME = re.compile(r"base_model\.model\.(?P<module>[\w.]+)\.lora_(?P<half>[AB])\.weight")


def read_adapter(directory: Path, ref: AdapterRef, *, max_bytes: int = MAX_BYTES) -> LoadedAdapter:
    """Raises InvalidAdapter, naming the file and the key or tensor at fault. Blocks on the disk."""
    scale = read_config(directory)
    halves: dict[str, dict[str, Array]] = {}
    for name, tensor in _read_tensors(directory / WEIGHTS_NAME, max_bytes).items():
        match = _TENSOR_NAME.fullmatch(name)
        if match is None:
            raise _refused(f"{name} is not a weight of lora_A or lora_B of a linear")
        halves.setdefault(match["module"], {})[match["half"]] = tensor
    if not halves:
        raise _refused("it holds no tensors")
    return LoadedAdapter(ref, {module: _pair(module, pair, scale) for module, pair in sorted(halves.items())})


def check_fits(adapter: LoadedAdapter, linears: Mapping[str, tuple[int, int]]) -> None:
    """Raises InvalidAdapter unless every pair belongs to one of a model's linears: path to (out, in)."""
    for module, pair in adapter.pairs.items():
        if module not in linears:
            raise InvalidAdapter(f"the model has no linear {module} that an adapter can change")
        found, wanted = (len(pair.b), pair.a.shape[1]), linears[module]
        if found != wanted:
            raise InvalidAdapter(f"{module}: the adapter's {found[1]} -> {found[0]} is not {wanted[1]} -> {wanted[0]}")


def _pair(module: str, halves: Mapping[str, Array], scale: LoraScale) -> LowRankPair:
    for half in "AB":
        if half not in halves:
            raise _refused(f"{module} has no lora_{half}.weight")
    a, b = halves["A"], halves["B"]
    if a.ndim != 2 or b.ndim != 2 or len(a) != scale.rank or b.shape[1] != scale.rank or not a.size or not b.size:
        raise _refused(f"{module}: lora_A {list(a.shape)} and lora_B {list(b.shape)} are no pair of rank {scale.rank}")
    if scale.scale != 1:
        with np.errstate(over="ignore", invalid="ignore"):
            b = b * np.float32(scale.scale)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise _refused(f"{module}: lora_A or lora_B, times the scale, holds what is no finite float32")
    return LowRankPair(a, b)


def _read_tensors(file: Path, max_bytes: int) -> dict[str, Array]:
    """Of float32, views of the file, which may be removed meanwhile: to read it would take its size twice over."""
    try:
        size = file.stat().st_size
        if size > max_bytes:
            raise _refused(f"its {size} bytes are more than the {max_bytes} that an adapter may have")
        with safe_open(file, framework="numpy"):  # checks that the header is one, and covers the file
            pass
        with file.open("rb") as stream:
            header_bytes = int.from_bytes(stream.read(8), "little")
            header: dict[str, dict[str, Any]] = json.loads(stream.read(header_bytes))
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        header.pop("__metadata__", None)
        return {name: _as_float32(name, entry, content, 8 + header_bytes) for name, entry in header.items()}
    except OSError as error:
        raise _refused(f"it cannot be read: {type(error).__name__}") from error
    except (SafetensorError, ValueError) as error:
        raise _refused(f"it is no safetensors file: {error}") from error


def _as_float32(name: str, entry: Mapping[str, Any], content: mmap.mmap, data_start: int) -> Array:
    shape = entry["shape"]
    if len(shape) != 2 or 0 in shape:
        raise _refused(f"{name} has the shape {shape[:4]}, which is no matrix")
    start = data_start + entry["data_offsets"][0]

    def read(dtype: str) -> np.ndarray[Any, Any]:
        return np.frombuffer(content, dtype, shape[0] * shape[1], start)

    match entry["dtype"]:
        case "F32":
            values: Array = np.require(read("<f4"), np.float32, "A")
        case "F16":
            values = read("<f2").astype(np.float32)
        case "BF16":
            values = (read("<u2").astype(np.uint32) << 16).view(np.float32)
        case dtype:
            raise _refused(f"{name} has the type {dtype}, not F32, F16 or BF16")
    return values.reshape(shape)


def _refused(reason: str) -> InvalidAdapter:
    return InvalidAdapter(f"{WEIGHTS_NAME}: {reason[:500]}")
