"""A model runner whose "model" reads the tokens it was given back from the cache: wrong paging gives wrong tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deployments.engine.protocol import LoadedAdapter
from deployments.engine.sampling.draw import TorchDraw
from deployments.engine.scheduler import Batch
from deployments.engine.sequence import PreparedAdapter
from deployments.engine.sequence import Sequence as TokenSequence
from deployments.errors import InvalidAdapter
from deployments.types import AdapterRef

VOCAB_SIZE = 50


def next_token(token_ids: Sequence[int], vocab_size: int) -> int:
    """What the fake model says comes after these tokens: any function of them will do."""
    value = 17
    for token_id in token_ids:
        value = (value * 1_000_003 + token_id + 1) % 2_147_483_647
    return value % vocab_size


@dataclass(frozen=True, slots=True, eq=False)
class FakeAdapter:
    """Implements PreparedAdapter."""

    ref: AdapterRef
    num_bytes: int = 1000


def seen_as(token_id: int, adapter: PreparedAdapter | None) -> int:
    """What the fake model keeps of a token: with another adapter something else, as its keys and values would be."""
    return token_id if adapter is None else token_id + 1000 * sum(adapter.ref.digest.encode())


class PagedFakeRunner:
    """Implements ModelRunner. Keeps the token of each cache slot and computes from those, through the block table.

    fail_next: the next step fails; fail_for: every step with this token in it; error: what everything fails with.
    """

    chunked_prefill = True
    prefix_reuse = True
    device = torch.device("cpu")

    def __init__(self, num_blocks: int, block_size: int, vocab_size: int = VOCAB_SIZE) -> None:
        self.num_blocks = num_blocks
        self.vocab_size = vocab_size
        self.draw = TorchDraw(vocab_size, self.device)
        self._block_size = block_size
        self._slots = [-1] * (num_blocks * block_size)
        self.batches: list[Batch] = []
        self.fail_next = False
        self.fail_for: int | None = None
        self.error: BaseException | None = None
        self.answer_nan_for: set[int] = set()
        # Looking at few tokens only, it soon repeats itself.
        self.num_seen: int | None = None

    def adapter_bytes(self, adapter: LoadedAdapter) -> int:
        return self.prepare_adapter(adapter).num_bytes

    def prepare_adapter(self, adapter: LoadedAdapter) -> "FakeAdapter":
        if self.error is not None:
            raise self.error
        if not adapter.pairs:
            raise InvalidAdapter("the fake wants an adapter that changes something")
        return FakeAdapter(adapter.ref)

    def run(self, batch: Batch) -> Tensor:
        self.batches.append(batch)
        if self.error is not None:
            raise self.error
        if self.fail_next or any(self.fail_for in item.token_ids() for item in batch.scheduled):
            self.fail_next = False
            raise RuntimeError("out of memory")
        rows = []
        for item in batch.scheduled:
            for position, token_id in enumerate(item.token_ids(), start=item.start):
                self._slots[self._slot(item.sequence, position)] = seen_as(token_id, item.sequence.adapter)
            for end in range(item.end - item.num_logits + 1, item.end + 1):
                seen = [self._slots[self._slot(item.sequence, position)] for position in range(end)]
                row = torch.zeros(self.vocab_size)
                row[next_token(seen[-self.num_seen :] if self.num_seen else seen, self.vocab_size)] = 20.0
                rows.append(row * torch.nan if item.sequence.group in self.answer_nan_for else row)
        return torch.stack(rows) if rows else torch.zeros((0, self.vocab_size))

    def release(self, sequence: TokenSequence) -> None:
        pass

    def _slot(self, sequence: TokenSequence, position: int) -> int:
        return sequence.block_table[position // self._block_size] * self._block_size + position % self._block_size
