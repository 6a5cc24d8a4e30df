"""The file of prepared weights: safetensors whose tensors begin at cache lines, so that kernels read them in place."""

import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_LINE_BYTES = 64
_DTYPES = {"U8": np.uint8, "F16": np.float16, "F32": np.float32}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


def write_weights(file: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Any safetensors library can read the file too."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        size = -tensor.nbytes % _LINE_BYTES + tensor.nbytes
        if size != tensor.nbytes:
            raise ValueError(f"{name} does not fill whole cache lines")
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-(len(encoded) + 8) % _LINE_BYTES)
    with file.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors.values():
            stream.write(np.ascontiguousarray(tensor).data)


def read_metadata(file: Path) -> dict[str, str]:
    """Raises OSError or ValueError."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    metadata: dict[str, str] = header.get("__metadata__", {})
    return metadata


def map_weights(file: Path) -> dict[str, Array]:
    """The tensors of the file, mapped: read-only, shared between processes, loaded as they are touched.

    Raises OSError or ValueError.
    """
    with file.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ)
    start = 8 + int.from_bytes(mapped[:8], "little")
    header = json.loads(mapped[8:start])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            flat: Array = np.frombuffer(mapped, np.uint8, end - begin, start + begin)
            tensors[name] = flat.view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors
