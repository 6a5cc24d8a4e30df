"""Adapters on a torch model: the sequences of a batch each have their own, or none, in one pass over all tokens.

The pairs of the adapters that a step uses are put side by side, whatever their ranks: h = x Aᵀ over all of them, zero
where a column is not of the token's own adapter, then h Bᵀ. Tokens without an adapter take no part, so what they get
is bit for bit what the model gives.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from deployments.engine.lora.peft_files import check_fits
from deployments.engine.protocol import LoadedAdapter
from deployments.engine.scheduler import ScheduledSequence
from deployments.errors import InvalidAdapter
from deployments.types import AdapterRef


@dataclass(frozen=True, slots=True, eq=False)
class TorchAdapter:
    """Implements PreparedAdapter. pairs: a [rank, in] and b [out, rank] by the linear's path, as the model computes."""

    ref: AdapterRef
    pairs: Mapping[str, tuple[Tensor, Tensor]]

    @property
    def num_bytes(self) -> int:
        return sum(half.nbytes for pair in self.pairs.values() for half in pair)


@dataclass(frozen=True, slots=True)
class _SideBySide:
    """The pairs of several adapters for one linear: a [R, in], b [out, R], and to which adapter each of R belongs."""

    a: Tensor
    b: Tensor
    owners: Tensor


@dataclass(slots=True)
class _Step:
    """num_tokens: of the pass. rows: those of tokens that have an adapter; slots: which of `adapters`, for each."""

    num_tokens: int
    rows: Tensor
    slots: Tensor


@dataclass(slots=True)
class _Active:
    """The adapters of a step and, by linear, what was put together of them. The next step often has the same ones."""

    adapters: tuple[TorchAdapter, ...]
    pairs: dict[str, _SideBySide] = field(default_factory=dict)


class TorchAdapters:
    """Changes what the linears of `model` return, during `applied` only. For one thread, but for `prepare`."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._linears = _linears(model)
        self._hooked: set[str] = set()
        self._active = _Active(())
        self._step: _Step | None = None

    def prepare(self, adapter: LoadedAdapter) -> TorchAdapter:
        """Copies the adapter to the model's device. Raises InvalidAdapter where it does not fit the model, or its
        numbers the model's type."""
        self._check_fits(adapter)
        copied = functools.partial(torch.tensor, device=self._model.device, dtype=self._model.dtype)
        pairs = {path: (copied(pair.a), copied(pair.b)) for path, pair in adapter.pairs.items()}
        for path, pair in pairs.items():
            # Zero times infinity is no number: it would reach the rows of other adapters.
            if not all(bool(factor.isfinite().all()) for factor in pair):
                raise InvalidAdapter(f"{path}: the adapter's numbers are too large for {self._model.dtype}")
        return TorchAdapter(adapter.ref, pairs)

    def num_bytes(self, adapter: LoadedAdapter) -> int:
        """Of what `prepare` makes of it. Raises InvalidAdapter where it does not fit the model."""
        self._check_fits(adapter)
        itemsize: int = self._model.dtype.itemsize
        return itemsize * sum(pair.a.size + pair.b.size for pair in adapter.pairs.values())

    def _check_fits(self, adapter: LoadedAdapter) -> None:
        check_fits(adapter, {path: shape for path, (_, shape) in self._linears.items()})

    @contextmanager
    def applied(self, scheduled: Sequence[ScheduledSequence]) -> Iterator[None]:
        """Within it, a pass of the model computes the tokens of these sequences, end to end, with their adapters."""
        adapters = {id(item.sequence.adapter): item.sequence.adapter for item in scheduled}
        found = sorted(
            (adapter for adapter in adapters.values() if isinstance(adapter, TorchAdapter)),
            key=lambda adapter: adapter.ref.digest,
        )
        if not found:
            self._active = _Active(())
            yield
            return
        if self._active.adapters != tuple(found):
            self._active = _Active(tuple(found))
        for path in {path for adapter in found for path in adapter.pairs} - self._hooked:
            self._linears[path][0].register_forward_hook(functools.partial(self._adapt, path))
            self._hooked.add(path)
        self._step = _step(scheduled, found, self._model.device)
        try:
            yield
        finally:
            self._step = None

    def _adapt(self, path: str, _module: torch.nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        step = self._step
        if step is None or not any(path in adapter.pairs for adapter in self._active.adapters):
            return output
        x = arguments[0].flatten(0, -2)
        if len(x) != step.num_tokens:
            raise ValueError(f"{path} computes {len(x)} rows, not one for each of the {step.num_tokens} tokens")
        if path not in self._active.pairs:
            self._active.pairs[path] = _side_by_side(self._active.adapters, path)
        pairs = self._active.pairs[path]
        # Not multiplied with a mask: what overflows in another adapter's column must not reach this row.
        h = (x[step.rows] @ pairs.a.T).masked_fill(pairs.owners != step.slots[:, None], 0)
        return output.flatten(0, -2).index_add(0, step.rows, h @ pairs.b.T).view_as(output)


def _linears(model: Any) -> dict[str, tuple[torch.nn.Module, tuple[int, int]]]:
    """The linears that see every token once, with (out, in), by their path; the output head is none of them."""
    head = model.get_output_embeddings()
    found: dict[str, tuple[torch.nn.Module, tuple[int, int]]] = {}
    for path, module in model.named_modules():
        if module is head or "experts" in path.split("."):
            continue
        if isinstance(module, torch.nn.Linear):
            found[path] = (module, (module.out_features, module.in_features))
        elif isinstance(module, Conv1D):
            found[path] = (module, (module.weight.shape[1], module.weight.shape[0]))
    return found


def _step(scheduled: Sequence[ScheduledSequence], adapters: Sequence[TorchAdapter], device: torch.device) -> _Step:
    slot_of = {id(adapter): slot for slot, adapter in enumerate(adapters)}
    rows: list[int] = []
    slots: list[int] = []
    start = 0
    for item in scheduled:
        if item.sequence.adapter is not None:
            rows += range(start, start + item.num_tokens)
            slots += [slot_of[id(item.sequence.adapter)]] * item.num_tokens
        start += item.num_tokens
    return _Step(start, torch.tensor(rows, device=device), torch.tensor(slots, device=device))


def _side_by_side(adapters: Sequence[TorchAdapter], path: str) -> _SideBySide:
    pairs = {slot: adapter.pairs[path] for slot, adapter in enumerate(adapters) if path in adapter.pairs}
    ranks = [len(a) for a, _ in pairs.values()]
    a = torch.cat([a for a, _ in pairs.values()])
    b = torch.cat([b for _, b in pairs.values()], 1)
    owners = torch.tensor(list(pairs), device=a.device).repeat_interleave(torch.tensor(ranks, device=a.device))
    return _SideBySide(a, b, owners)
