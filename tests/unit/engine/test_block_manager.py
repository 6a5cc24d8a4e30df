"""The block manager under any order of calls, with a shadow of what every block holds."""

from itertools import count

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from deployments.engine.block_manager import BlockManager
from deployments.engine.scheduler import ScheduledSequence
from deployments.engine.sequence import Sequence
from deployments.types import SamplingParams
from tests.unit.engine.shadow_cache import ShadowCache

# Few different tokens and lengths around the blocks' borders, so that prompts often begin alike.
TOKENS = st.integers(0, 1)
PROMPTS = st.integers(1, 13).map(lambda length: [0] * length) | st.lists(TOKENS, min_size=1, max_size=13)
SALTS = st.sampled_from(["alice", "bob"])


class BlockManagerMachine(RuleBasedStateMachine):
    """Sequences come, are computed in pieces, grow, give their blocks back and go."""

    sequences = Bundle("sequences")

    @initialize(num_blocks=st.integers(1, 7), block_size=st.integers(1, 3), reuse=st.booleans())
    def start(self, num_blocks: int, block_size: int, reuse: bool) -> None:
        self.manager = BlockManager(num_blocks, block_size, enable_prefix_reuse=reuse)
        self.shadow = ShadowCache(self.manager)
        self.alive: dict[int, Sequence] = {}
        self.keys = count()

    @rule(target=sequences, prompt=PROMPTS, salt=SALTS, wants_logprobs=st.booleans())
    def arrive(self, prompt: list[int], salt: str, wants_logprobs: bool) -> Sequence:
        sequence = self._sequence(prompt, salt)
        sequence.wants_prompt_logprobs = wants_logprobs
        self.alive[sequence.key] = sequence
        return sequence

    @rule(target=sequences, prompt=PROMPTS, salt=SALTS)
    def arrive_and_be_computed(self, prompt: list[int], salt: str) -> Sequence:
        sequence = self._sequence(prompt, salt)
        self.alive[sequence.key] = sequence
        self.admit(sequence)
        self.compute(sequence, len(prompt))
        return sequence

    @rule(sequence=sequences)
    def admit(self, sequence: Sequence) -> None:
        if sequence.block_table:
            return
        if not self._admit(sequence):
            self.manager.release(sequence)

    @rule(sequence=sequences, num_tokens=st.integers(1, 8))
    def compute(self, sequence: Sequence, num_tokens: int) -> None:
        end = min(sequence.num_tokens, sequence.num_computed + num_tokens)
        held = list(sequence.block_table)
        missing = self.manager.num_blocks_for(end) - len(held)
        fits = missing <= self.manager.num_free
        assert self.manager.extend(sequence, end) == fits
        if not fits:
            assert sequence.block_table == held
            return
        assert sequence.block_table[: len(held)] == held
        self.shadow.write(ScheduledSequence(sequence, sequence.num_computed, end), self.alive.values())
        self.manager.commit(sequence, end)

    @rule(sequence=sequences, token_id=TOKENS)
    def grow(self, sequence: Sequence, token_id: int) -> None:
        sequence.append(token_id)

    @rule(sequence=sequences)
    def preempt(self, sequence: Sequence) -> None:
        self.manager.release(sequence)

    @rule(sequence=consumes(sequences))
    def leave(self, sequence: Sequence) -> None:
        self.manager.release(sequence)
        del self.alive[sequence.key]

    @rule(prompt=PROMPTS, salt=SALTS)
    def look_for_a_prefix(self, prompt: list[int], salt: str) -> None:
        """What a newcomer is given from the cache is what it would have computed: the invariant looks at it."""
        sequence = self._sequence(prompt, salt)
        self._admit(sequence)
        self.shadow.check([*self.alive.values(), sequence])
        self.manager.release(sequence)

    @precondition(lambda self: not self.alive)
    @rule()
    def nothing_is_held_by_nobody(self) -> None:
        assert self.manager.num_free == self.manager.num_blocks

    @invariant()
    def everything_is_accounted_for(self) -> None:
        self.shadow.check(self.alive.values())

    def _admit(self, sequence: Sequence) -> bool:
        admitted = self.manager.can_admit(sequence)
        self.manager.admit(sequence)
        assert sequence.num_computed < sequence.num_tokens
        assert not (sequence.wants_prompt_logprobs and sequence.num_computed)
        assert self.manager.extend(sequence, sequence.num_tokens + 1) == admitted
        return admitted

    def _sequence(self, prompt: list[int], salt: str) -> Sequence:
        key = next(self.keys)
        return Sequence(key, key, 0, tuple(prompt), SamplingParams(), frozenset(), 1000, cache_salt=salt)


TestBlockManager = BlockManagerMachine.TestCase
TestBlockManager.settings = settings(max_examples=100, stateful_step_count=40)
