"""Attention of packed documents, each on its own: what a mask would throw away is not computed.

Registered with transformers under `NAME`, so that every model whose layers ask transformers for their attention
function works with it unchanged. For CPUs: on a GPU many small calls cost more than one large one with a mask.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface

NAME = "tritext_packed"


def document_lengths(position_ids: Tensor) -> list[int]:
    """Of the documents in rows [rows, length], end to end: each begins at position 0, and so does every row."""
    starts = (position_ids.flatten() == 0).nonzero().flatten().tolist()
    return [end - start for start, end in zip(starts, [*starts[1:], position_ids.numel()], strict=True)]


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    lengths: Sequence[int],
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface. query, key, value: [rows, heads, length, head size]; lengths: see above.

    Raises ValueError for what it does not compute.
    """
    del module
    if attention_mask is not None or softcap is not None or s_aux is not None:
        raise ValueError("packed attention computes no masks, caps or sinks")
    if sliding_window is not None and sliding_window < max(lengths):
        raise ValueError("packed attention computes no windows")
    rows, heads, length, _size = query.shape
    key = key.repeat_interleave(heads // key.shape[1], 1)
    value = value.repeat_interleave(heads // value.shape[1], 1)
    # Splitting [1, heads, tokens, size], which costs little backwards, unlike slices.
    of_documents = zip(
        *(torch.split(each.transpose(0, 1).flatten(1, 2)[None], list(lengths), 2) for each in (query, key, value)),
        strict=True,
    )
    attended = [
        functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling)
        for q, k, v in of_documents
    ]
    return torch.cat(attended, 2)[0].transpose(0, 1).reshape(rows, length, heads, -1), None


AttentionInterface.register(NAME, packed_attention)
