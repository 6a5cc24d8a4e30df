"""What each slot of the KV cache must hold, kept beside a BlockManager to judge it by: tests only."""

from collections import Counter
from collections.abc import Iterable

from deployments.engine.block_manager import BlockManager
from deployments.engine.scheduler import ScheduledSequence
from deployments.engine.sequence import Sequence

# Everything that the keys and values of a position depend on: whose they are, and all tokens up to it.
Content = tuple[str, tuple[int, ...]]


class ShadowCache:
    """The contents that computing writes, slot by slot, and the rules that hold for them at any moment."""

    def __init__(self, manager: BlockManager) -> None:
        self._manager = manager
        self._slots: list[Content | None] = [None] * (manager.num_blocks * manager.block_size)
        self._meanings: dict[bytes, Content] = {}

    def write(self, item: ScheduledSequence, alive: Iterable[Sequence]) -> None:
        """The model computes the positions of `item`, guesses among them: it reads all before them and writes these."""
        sequence = item.sequence
        tokens = (*sequence.tokens(0, item.start), *item.token_ids())
        assert len(tokens) == item.end <= len(sequence.block_table) * self._manager.block_size
        holders = Counter(block for other in alive for block in other.block_table)
        for position in range(item.end):
            slot = self._slot(sequence, position)
            if position < item.start:
                assert self._slots[slot] == content(sequence, position), "computed from what others left"
            else:
                assert holders[slot // self._manager.block_size] == 1, "two sequences share a writable block"
                self._slots[slot] = sequence.cache_salt, tokens[: position + 1]

    def check(self, alive: Iterable[Sequence]) -> None:
        """`alive`: all sequences that are not released for good, those that hold nothing among them."""
        manager, alive = self._manager, list(alive)
        held = {block for sequence in alive for block in sequence.block_table}
        free = set(manager._free)
        assert held.isdisjoint(free)
        assert held | free == set(range(manager.num_blocks))
        assert manager.num_free == len(free)
        holders = Counter(block for sequence in alive for block in sequence.block_table)
        assert manager._num_holders == [holders[block] for block in range(manager.num_blocks)]
        for sequence in alive:
            assert len(set(sequence.block_table)) == len(sequence.block_table)
            assert (
                0 <= sequence.num_computed <= min(sequence.num_tokens, len(sequence.block_table) * manager.block_size)
            )
            for position in range(sequence.num_computed):
                assert self._slots[self._slot(sequence, position)] == content(sequence, position)
        assert {block: digest for digest, block in manager._block_of.items()} == manager._digest_of
        assert len(set(manager._block_of.values())) == len(manager._block_of)
        for digest, block in manager._block_of.items():
            self._check_known_block(digest, block)
        assert set(manager._digests) <= {sequence.key for sequence in alive}

    def _check_known_block(self, digest: bytes, block: int) -> None:
        """A block that can be found holds one whole run of positions, and what its digest has always stood for."""
        size = self._manager.block_size
        slots = self._slots[block * size : (block + 1) * size]
        last = slots[-1]
        assert last is not None
        salt, tokens = last
        assert slots == [(salt, tokens[: len(tokens) - size + 1 + offset]) for offset in range(size)]
        assert self._meanings.setdefault(digest, last) == last

    def _slot(self, sequence: Sequence, position: int) -> int:
        size = self._manager.block_size
        return sequence.block_table[position // size] * size + position % size


def content(sequence: Sequence, position: int) -> Content:
    return sequence.cache_salt, tuple(sequence.tokens(0, position + 1))
