"""Which block of the KV cache holds which tokens: allocation, sharing and reuse. Pure bookkeeping: no torch.

A block holds the keys and values of `block_size` consecutive tokens. A full block is known by a digest of everything
that its content depends on: the account's salt, the adapter and all tokens up to its end. A later sequence that begins
with the same tokens takes the block as it is. A block that nobody uses keeps its content until its space is needed; the
one unused for the longest time goes first.
"""

import hashlib
from array import array
from collections import OrderedDict

from deployments.engine.sequence import Sequence


class BlockManager:
    """Blocks 0..num_blocks-1. Every block is either held by at least one sequence or free, never both."""

    def __init__(self, num_blocks: int, block_size: int, *, enable_prefix_reuse: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._enable_prefix_reuse = enable_prefix_reuse
        self._free: OrderedDict[int, None] = OrderedDict((block, None) for block in range(num_blocks))
        self._num_holders = [0] * num_blocks
        self._digest_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._digests: dict[int, list[bytes]] = {}
        # Of the prompts of all sequences that began, and those of them that were found here.
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0

    @property
    def num_free(self) -> int:
        return len(self._free)

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def can_share(self, num_tokens: int) -> bool:
        """Whether a sequence of so many tokens can leave blocks to another one that begins with the same tokens."""
        return self._enable_prefix_reuse and num_tokens > self.block_size

    def can_admit(self, sequence: Sequence) -> bool:
        """Whether all present tokens of the sequence, and the next one, fit into free or reusable blocks."""
        shared = self._reusable(sequence)
        num_shared_free = sum(block in self._free for block in shared)
        return self.num_blocks_for(sequence.num_tokens + 1) - len(shared) <= self.num_free - num_shared_free

    def admit(self, sequence: Sequence) -> None:
        """Gives the sequence the cached blocks of its longest known prefix and marks those tokens as computed."""
        for block in self._reusable(sequence):
            self._hold(block)
            sequence.block_table.append(block)
        sequence.num_computed = len(sequence.block_table) * self.block_size
        if sequence.num_cached is None:
            sequence.num_cached = min(sequence.num_computed, len(sequence.prompt_token_ids))
            self.num_prompt_tokens += len(sequence.prompt_token_ids)
            self.num_cached_tokens += sequence.num_cached

    def extend(self, sequence: Sequence, num_tokens: int) -> bool:
        """Makes room for the sequence's first `num_tokens` tokens; False, and nothing done, if blocks are missing."""
        missing = self.num_blocks_for(num_tokens) - len(sequence.block_table)
        if missing > self.num_free:
            return False
        for _ in range(missing):
            block, _ = self._free.popitem(last=False)
            self._forget(block)
            self._num_holders[block] = 1
            sequence.block_table.append(block)
        return True

    def commit(self, sequence: Sequence, num_computed: int) -> None:
        """Records that the first `num_computed` tokens are computed, and lets others find the blocks they fill."""
        first, num_full = sequence.num_computed // self.block_size, num_computed // self.block_size
        sequence.num_computed = num_computed
        if not self._enable_prefix_reuse or num_full == first:
            return
        digests = self._digests_of(sequence, num_full)
        for position in range(first, num_full):
            if digests[position] not in self._block_of:
                block = sequence.block_table[position]
                self._block_of[digests[position]] = block
                self._digest_of[block] = digests[position]

    def release(self, sequence: Sequence) -> None:
        """Takes all blocks from the sequence; their content stays known until it is overwritten."""
        # The end of a sequence is the least likely to be met again, so its last block is to be reused first.
        for block in reversed(sequence.block_table):
            self._num_holders[block] -= 1
            if self._num_holders[block] == 0:
                self._free[block] = None
                if block not in self._digest_of:
                    self._free.move_to_end(block, last=False)
        sequence.block_table.clear()
        sequence.num_computed = 0
        self._digests.pop(sequence.key, None)

    def _reusable(self, sequence: Sequence) -> list[int]:
        """Cached blocks of the longest known prefix; at least one token is left to compute, for its logits."""
        if not self._enable_prefix_reuse or sequence.wants_prompt_logprobs:
            return []
        blocks = []
        for digest in self._digests_of(sequence, (sequence.num_tokens - 1) // self.block_size):
            block = self._block_of.get(digest)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def _digests_of(self, sequence: Sequence, num_full: int) -> list[bytes]:
        """Digests of the sequence's first `num_full` blocks, each over its tokens and the digest before it."""
        digests = self._digests.setdefault(sequence.key, [])
        while len(digests) < num_full:
            start = len(digests) * self.block_size
            parent = digests[-1] if digests else _root(sequence)
            tokens = array("q", sequence.tokens(start, start + self.block_size)).tobytes()
            digests.append(hashlib.sha256(parent + tokens).digest())
        return digests[:num_full]

    def _hold(self, block: int) -> None:
        self._num_holders[block] += 1
        self._free.pop(block, None)

    def _forget(self, block: int) -> None:
        digest = self._digest_of.pop(block, None)
        if digest is not None:
            del self._block_of[digest]


def _root(sequence: Sequence) -> bytes:
    """What the first block's digest starts from: sequences of other accounts or adapters never share a block."""
    adapter = None if sequence.adapter is None else sequence.adapter.ref.digest
    return hashlib.sha256(repr((sequence.cache_salt, adapter)).encode()).digest()
