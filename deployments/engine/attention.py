"""Attention over a paged KV cache, for ragged batches: sequences of different lengths side by side, no padding.

Registered with transformers under `NAME`, so that every model whose layers ask transformers for their attention
function works with it unchanged. Each sequence is attended to on its own: its result does not depend on the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface

NAME = "tritext_paged"


@dataclass(frozen=True, slots=True)
class Segment:
    """The tokens `query_start..query_end` of the batch belong to one sequence, whose keys are at `slots` [L] of the
    cache, in order; the last of them are those of the segment itself."""

    query_start: int
    query_end: int
    slots: Tensor


class PagedCache:
    """Keys and values of every layer, by slot; allocated when a layer first writes.

    Tensors are [num_slots, heads, head size]; keys and values may differ in size.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def bytes_per_token(self) -> int:
        """Over the layers seen so far."""
        return sum(cache[0].numel() * cache.element_size() for key_value in self.layers.values() for cache in key_value)

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Stores key and value [T, heads, head size] at `slots` [T]; returns the layer's whole caches."""
        if layer not in self.layers:
            self.layers[layer] = (
                key.new_zeros((self.num_slots, *key.shape[1:])),
                value.new_zeros((self.num_slots, *value.shape[1:])),
            )
        keys, values = self.layers[layer]
        keys.index_copy_(0, slots, key)
        values.index_copy_(0, slots, value)
        return keys, values


@dataclass(frozen=True, slots=True)
class PagedBatch:
    """What the attention layers need to know of a step: where new keys go, and which keys each sequence sees."""

    cache: PagedCache
    write_slots: Tensor
    segments: Sequence[Segment]


def paged_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    paged: PagedBatch,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface. query, key, value: [1, heads, T, head size]; returns [1, T, heads, size].

    Causal, optionally within a sliding window, with capped scores (`softcap`) and attention sinks (`s_aux` [heads]).
    """
    if attention_mask is not None:
        raise ValueError("paged attention makes its own mask")
    layer = module.layer_idx
    if not isinstance(layer, int):
        raise ValueError("the model's attention layers do not tell their index")
    new_keys, new_values = key[0].transpose(0, 1), value[0].transpose(0, 1)
    keys, values = paged.cache.write(layer, paged.write_slots, new_keys, new_values)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = query.new_empty((query.shape[2], query.shape[1], value.shape[-1]))
    for segment in paged.segments:
        length = segment.query_end - segment.query_start
        slots = segment.slots
        if sliding_window is not None:
            slots = slots[-(sliding_window + length - 1) :]
        attended = attend(
            query[0, :, segment.query_start : segment.query_end],
            keys[slots].transpose(0, 1),
            values[slots].transpose(0, 1),
            scale=scale,
            sliding_window=sliding_window,
            softcap=softcap,
            sinks=s_aux,
        )
        output[segment.query_start : segment.query_end] = attended.transpose(0, 1)
    return output.unsqueeze(0), None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    sliding_window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Causal attention of one sequence: query [heads, n, size] at the last n of key and value [kv heads, L, size].

    Several query heads share a key head where there are fewer of those. Returns [heads, n, value size].
    """
    num_queries, num_keys = query.shape[1], key.shape[1]
    mask = None
    if num_queries > 1:
        mask = _causal_mask(num_queries, num_keys, sliding_window, query.device)
    if softcap is None and sinks is None:
        return functional.scaled_dot_product_attention(
            query[None], key[None], value[None], attn_mask=mask, scale=scale, enable_gqa=True
        )[0]
    group = query.shape[0] // key.shape[0]
    scores = query @ key.repeat_interleave(group, dim=0).transpose(1, 2) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.reshape(-1, 1, 1).expand(-1, num_queries, 1)], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))[..., :num_keys]
    return weights.to(value.dtype) @ value.repeat_interleave(group, dim=0)


def _causal_mask(num_queries: int, num_keys: int, sliding_window: int | None, device: torch.device) -> Tensor:
    """[num_queries, num_keys], True where a query may look; the queries stand at the last positions."""
    position = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    key_position = torch.arange(num_keys, device=device)[None]
    mask = key_position <= position
    if sliding_window is not None:
        mask &= key_position > position - sliding_window
    return mask


AttentionInterface.register(NAME, paged_attention)
