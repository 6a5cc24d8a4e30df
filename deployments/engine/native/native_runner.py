"""Runs a batch on the native kernels: gathers its integers, calls the compiled step, hands out the logits.

Implements `deployments.engine.model_runner.ModelRunner`. Knows no transformers: a start takes what torch takes to load.
"""

import contextlib
import ctypes
import mmap
import os
import weakref
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deployments.config import EngineConfig
from deployments.engine.native.architecture import Architecture
from deployments.engine.native.native_adapter import NativeAdapter, adapter_bytes, prepare_adapter
from deployments.engine.native.native_draw import NativeDraw
from deployments.engine.native.packing import GROUP, packed_bytes
from deployments.engine.native.weight_file import Array, map_weights
from deployments.engine.protocol import LoadedAdapter
from deployments.engine.sampling.draw import Draw
from deployments.engine.scheduler import Batch
from deployments.engine.sequence import Sequence


class _Shape(ctypes.Structure):
    """`Shape` of kernels/model.cpp."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("layers", "hidden", "intermediate", "heads", "kv_heads", "head_dim")),
        *((name, ctypes.c_int32) for name in ("vocabulary", "block_size", "threads")),
        ("epsilon", ctypes.c_float),
    )


_FACTORS = ("values_factor", "up_factor")
_LAYER_TENSORS = ("attention_norm", "qkv", "qkv_bias", "output", "mlp_norm", "gate_up", "down", *_FACTORS)


class _LayerWeights(ctypes.Structure):
    """`LayerWeights` of kernels/model.cpp."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in _LAYER_TENSORS)


class _Step(ctypes.Structure):
    """`Step` of kernels/model.cpp."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("rows", "sequences", "logit_rows")),
        *((name, ctypes.c_void_p) for name in ("tokens", "positions", "starts", "tables", "table_starts", "logits_of")),
        *((name, ctypes.c_void_p) for name in ("adapters", "cache", "logits")),
    )


class NativeRunner:
    """All sequences of a batch in one pass over int8 weights; a sequence's logits do not depend on the others.

    The cache holds keys and values as float16, in exactly `num_blocks` blocks within the configured bytes.
    """

    chunked_prefill = True
    prefix_reuse = True
    device = torch.device("cpu")

    def __init__(self, architecture: Architecture, weights: Path, config: EngineConfig, kernels: ctypes.CDLL) -> None:
        """weights: a file that `quantize` wrote. kernels: the compiled kernels. Raises OSError or ValueError where the
        weights cannot be read."""
        self._kernels = kernels
        self._kernels.tritext_create.restype = ctypes.c_void_p
        self._architecture = architecture
        self._block_size = config.block_size
        self._weights = map_weights(weights)
        _check_sizes(self._weights, architecture)
        self.vocab_size = architecture.vocab_size
        self.draw: Draw = NativeDraw(kernels, config.num_threads)
        bytes_per_token = 2 * architecture.num_layers * architecture.num_kv_heads * architecture.head_dim * 2
        self.num_blocks = config.kv_cache_bytes // (bytes_per_token * config.block_size)
        self._cache: Array = _cache_memory(self.num_blocks * config.block_size * bytes_per_token)
        self._model = ctypes.c_void_p(self._create(config))
        # Not at exit, when a step may still be running in a thread that nobody has stopped.
        weakref.finalize(self, self._kernels.tritext_destroy, self._model).atexit = False

    def run(self, batch: Batch) -> Tensor:
        """Raises ValueError for a token or a block that does not exist, MemoryError when memory runs out."""
        tokens: list[int] = []
        positions: list[int] = []
        tables: list[int] = []
        table_starts: list[int] = []
        logits_of: list[int] = []
        starts = [0]
        for item in batch.scheduled:
            tokens += item.token_ids()
            positions += range(item.start, item.end)
            table_starts.append(len(tables))
            tables += item.sequence.block_table
            starts.append(len(tokens))
            logits_of += range(len(tokens) - item.num_logits, len(tokens))
        logits = torch.empty((len(logits_of), self.vocab_size), dtype=torch.float32)
        if not tokens:
            return logits
        # The kernels check nothing, and would read or write elsewhere.
        if min(tokens) < 0 or max(tokens) >= self.vocab_size:
            raise ValueError("the batch holds a token that the model does not have")
        if (
            min(tables) < 0
            or max(tables) >= self.num_blocks
            or any(len(item.sequence.block_table) * self._block_size < item.end for item in batch.scheduled)
        ):
            raise ValueError("the batch holds a block that the cache does not have")
        # Kept until the call is over: the step holds addresses only.
        arrays = [np.array(part, np.int32) for part in (tokens, positions, starts, tables, table_starts, logits_of)]
        addresses = (array.ctypes.data for array in arrays)
        adapters = _adapters(batch)
        num_adapted = sum(address is not None for address in adapters)
        step = _Step(
            len(tokens),
            len(batch.scheduled),
            len(logits_of),
            *addresses,
            ctypes.addressof(adapters) if num_adapted else None,
            self._cache.ctypes.data,
            logits.data_ptr(),
        )
        if self._kernels.tritext_run(self._model, ctypes.byref(step)):
            raise MemoryError("no memory for the activations of a step")
        return logits

    def adapter_bytes(self, adapter: LoadedAdapter) -> int:
        return adapter_bytes(adapter, self._architecture)

    def prepare_adapter(self, adapter: LoadedAdapter) -> NativeAdapter:
        """Raises InvalidAdapter where it does not fit the model."""
        return prepare_adapter(adapter, self._architecture, self._weights, self._kernels)

    def release(self, sequence: Sequence) -> None:
        """Nothing to do: the blocks of the cache are the block manager's."""

    def _create(self, config: EngineConfig) -> int:
        architecture = self._architecture
        shape = _Shape(
            architecture.num_layers,
            architecture.hidden_size,
            architecture.intermediate_size,
            architecture.num_heads,
            architecture.num_kv_heads,
            architecture.head_dim,
            architecture.vocab_size,
            config.block_size,
            config.num_threads or len(os.sched_getaffinity(0)),
            architecture.epsilon,
        )
        layers = (_LayerWeights * architecture.num_layers)()
        for index, layer in enumerate(layers):
            for name in _LAYER_TENSORS:
                setattr(layer, name, _address(self._weights.get(f"layers.{index}.{name}")))
        shared = (
            ctypes.c_void_p(_address(self._weights[name])) for name in ("embedding", "frequencies", "norm", "head")
        )
        model: int | None = self._kernels.tritext_create(ctypes.byref(shape), *shared, layers)
        if not model:
            raise MemoryError("no memory for the model")
        return model


def _check_sizes(weights: Mapping[str, Array], architecture: Architecture) -> None:
    """Raises ValueError where a tensor that the kernels read, which check nothing, is missing or too short."""
    a = architecture
    hidden = -(-a.hidden_size // GROUP) * GROUP
    layer = {
        "attention_norm": 4 * hidden,
        "qkv": packed_bytes(a.qkv_size, hidden),
        "output": packed_bytes(a.hidden_size, a.attention_size),
        "mlp_norm": 4 * hidden,
        "gate_up": 2 * packed_bytes(a.intermediate_size, hidden),
        "down": packed_bytes(a.hidden_size, a.intermediate_size),
        **({"qkv_bias": 4 * a.qkv_size} if a.qkv_bias else {}),
        **dict.fromkeys(("qkv_smoothing", "gate_up_smoothing"), 4 * a.hidden_size),
        "output_smoothing": 4 * a.attention_size,
        "down_smoothing": 4 * a.intermediate_size,
    }
    sizes = {
        "embedding": 2 * a.vocab_size * hidden,
        "norm": 4 * hidden,
        "head": packed_bytes(a.vocab_size, hidden),
        **{f"layers.{index}.{name}": size for index in range(a.num_layers) for name, size in layer.items()},
    }
    for name, size in sizes.items():
        if name not in weights or weights[name].nbytes < size:
            raise ValueError(f"the prepared weights are not those of the model's config.json: see the tensor {name}")


def _adapters(batch: Batch) -> ctypes.Array[ctypes.c_void_p]:
    """The address of each sequence's adapter, or null. The sequences keep what is there alive."""
    addresses = []
    for item in batch.scheduled:
        adapter = item.sequence.adapter
        if adapter is not None and not isinstance(adapter, NativeAdapter):
            raise TypeError("an adapter was prepared by another runner")
        addresses.append(None if adapter is None else adapter.address)
    return (ctypes.c_void_p * len(addresses))(*addresses)


def _cache_memory(size: int) -> Array:
    """Private memory: aligned, and taken from the system when a block is first written.

    In huge pages where the system has them: attention reads pieces of 4 KiB that lie apart, and with small pages each
    of them costs a translation of its address; a batch of 32 steps a tenth faster without.
    """
    memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)


def _address(array: Array | None) -> int | None:
    return None if array is None else array.ctypes.data
