"""Scheduler and block manager together under any arrivals, ends and cache sizes, with rules that hold at each step."""

from collections.abc import Callable
from itertools import count

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from deployments.engine.block_manager import BlockManager
from deployments.engine.prompt_lookup import PromptLookup
from deployments.engine.scheduler import Batch, ScheduledSequence, Scheduler
from deployments.engine.sequence import Sequence
from deployments.types import SamplingParams
from tests.unit.engine.shadow_cache import ShadowCache

CONTEXT_LENGTH = 24
TOKENS = st.integers(0, 1)


def sampled_tokens(item: ScheduledSequence) -> st.SearchStrategy[list[int]]:
    """What a sampler may answer: after some guesses that were right another token, or one more after all of them."""

    def after(num_right: int) -> st.SearchStrategy[list[int]]:
        right = list(item.guesses[:num_right])
        if num_right == len(item.guesses):
            return TOKENS.map(lambda token_id: [*right, token_id])
        return st.just([*right, 1 - item.guesses[num_right]])

    return st.integers(0, len(item.guesses)).flatmap(after)


class SchedulerMachine(RuleBasedStateMachine):
    """Requests arrive and are cancelled between steps; a step's "model" writes the shadow, its "sampler" says anything.
    Few different tokens make guesses frequent.

    The cache holds one whole context at least, as `TorchEngine` makes sure, and often not much more.
    """

    @initialize(
        block_size=st.integers(1, 4),
        spare_blocks=st.integers(0, 12),
        max_num_seqs=st.integers(1, 5),
        max_batched_tokens=st.integers(1, 12),
        chunked=st.booleans(),
        reuse=st.booleans(),
        guess=st.booleans(),
    )
    def start(
        self,
        block_size: int,
        spare_blocks: int,
        max_num_seqs: int,
        max_batched_tokens: int,
        chunked: bool,
        reuse: bool,
        guess: bool,
    ) -> None:
        num_blocks = -(-CONTEXT_LENGTH // block_size) + spare_blocks
        # What computes a sequence in one piece finds nothing in a cache either.
        self.blocks = BlockManager(num_blocks, block_size, enable_prefix_reuse=reuse and chunked)
        self.scheduler = Scheduler(
            self.blocks,
            max_num_seqs=max_num_seqs,
            max_batched_tokens=max_batched_tokens,
            chunked_prefill=chunked,
            lookup=PromptLookup() if guess and chunked else None,
        )
        self.max_num_seqs, self.max_batched_tokens, self.chunked = max_num_seqs, max_batched_tokens, chunked
        self.shadow = ShadowCache(self.blocks)
        self.keys, self.groups = count(), count()
        self.alive: dict[int, Sequence] = {}
        self.with_cache: set[int] = set()

    @rule(
        prompt=st.lists(TOKENS, min_size=1, max_size=CONTEXT_LENGTH - 1),
        generated=st.lists(st.lists(TOKENS, max_size=4), min_size=1, max_size=3),
        max_tokens=st.integers(5, 12),
        salt=st.sampled_from(["alice", "bob"]),
        wants_logprobs=st.booleans(),
    )
    def arrive(
        self, prompt: list[int], generated: list[list[int]], max_tokens: int, salt: str, wants_logprobs: bool
    ) -> None:
        """A request for some sequences, of which some may have been begun elsewhere."""
        group = next(self.groups)
        for index, begun in enumerate(generated):
            sequence = Sequence(
                key=next(self.keys),
                group=group,
                index=index,
                prompt_token_ids=tuple(prompt),
                params=SamplingParams(max_tokens=max_tokens),
                eos_token_ids=frozenset(),
                context_length=CONTEXT_LENGTH,
                cache_salt=salt,
                output_token_ids=begun[: CONTEXT_LENGTH - 1 - len(prompt)],
                wants_prompt_logprobs=wants_logprobs and index == 0,
            )
            self.alive[sequence.key] = sequence
            self.scheduler.add(sequence)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """One sequence, or all of a request."""
        chosen = self.alive[data.draw(st.sampled_from(sorted(self.alive)))]
        whole = data.draw(st.booleans())
        gone = [s for s in self.alive.values() if s is chosen or (whole and s.group == chosen.group)]
        self._end(gone)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        self._step(lambda item: data.draw(sampled_tokens(item)))

    @precondition(lambda self: self.alive)
    @rule()
    def step_and_fail(self) -> None:
        """The model raises: what it wrote is lost, and so are the requests of the batch."""
        batch = self._schedule()
        groups = {item.sequence.group for item in batch.scheduled}
        self._end([sequence for sequence in self.alive.values() if sequence.group in groups])

    @invariant()
    def everything_is_accounted_for(self) -> None:
        self.shadow.check(self.alive.values())
        assert self.scheduler.num_running + self.scheduler.num_waiting == len(self.alive)
        assert self.scheduler.num_running <= self.max_num_seqs

    def teardown(self) -> None:
        """Nobody starves: once nobody new arrives, every step brings the one who came first nearer to its end."""
        if not hasattr(self, "scheduler"):
            return
        bound = sum(len(s.prompt_token_ids) + s.params.max_tokens for s in self.alive.values())
        for _ in range(bound):
            if self.alive:
                self._step(lambda _: [0])
                self.everything_is_accounted_for()
        assert not self.alive
        assert self.scheduler.schedule() is None
        assert self.blocks.num_free == self.blocks.num_blocks

    def _step(self, sample: Callable[[ScheduledSequence], list[int]]) -> None:
        batch = self._schedule()
        tokens = {}
        for item in batch.scheduled:
            self.shadow.write(item, self.alive.values())
            self.with_cache.add(item.sequence.key)
            if item.samples:
                tokens[item.sequence.key] = sample(item)
                item.sequence.wants_prompt_logprobs = False
        before = {key: list(self.alive[key].output_token_ids) for key in tokens}
        advanced = self.scheduler.update(batch, tokens)
        assert {item.sequence.key for item in advanced} == set(tokens)
        for item in advanced:
            key = item.sequence.key
            assert item.sequence.output_token_ids == [*before[key], *tokens[key]]
            if item.finish_reason is not None:
                del self.alive[key]
        self._follow_releases()

    def _schedule(self) -> Batch:
        waited = self._waiting()
        batch = self.scheduler.schedule()
        self._follow_releases()
        assert batch is not None, "sequences wait and none of them can be scheduled"
        self._check_batch(batch)
        self._check_order(waited)
        return batch

    def _check_batch(self, batch: Batch) -> None:
        running = {sequence.key for sequence in self.scheduler._running}
        keys = [item.sequence.key for item in batch.scheduled]
        assert len(set(keys)) == len(keys)
        assert set(keys) <= running <= set(self.alive)
        assert batch.num_tokens <= self.max_batched_tokens or (not self.chunked and len(keys) == 1)
        for item in batch.scheduled:
            sequence, num_guesses = item.sequence, len(item.guesses)
            assert item.start == sequence.num_computed < item.end - num_guesses <= sequence.num_tokens
            assert self.chunked or item.end == sequence.num_tokens
            if num_guesses:
                assert item.samples
                assert len(sequence.output_token_ids) + num_guesses < sequence.params.max_tokens
                assert sequence.num_tokens + num_guesses < sequence.context_length

    def _check_order(self, waited: list[Sequence]) -> None:
        """First come, first served: nobody is overtaken but those who wait for a sibling's prompt."""
        admitted = [sequence.key for sequence in waited if sequence in self.scheduler._running]
        for sequence in self._waiting():
            overtaken = sequence.key < max(admitted, default=-1)
            assert not overtaken or self._awaits_sibling(sequence)
        # Who came later is preempted first, so who came first of all goes on.
        assert [s.key for s in self.scheduler._running] == sorted(s.key for s in self.scheduler._running)

    def _awaits_sibling(self, sequence: Sequence) -> bool:
        return any(
            other.group == sequence.group and other.index == 0 and other.num_computed < len(other.prompt_token_ids)
            for other in self.scheduler._running
        )

    def _waiting(self) -> list[Sequence]:
        return list(self.scheduler._waiting)

    def _follow_releases(self) -> None:
        """Whoever has no block any more was reported, so that a runner can forget it too."""
        self.with_cache -= {sequence.key for sequence in self.scheduler.take_released()}
        assert self.with_cache <= {key for key, sequence in self.alive.items() if sequence.block_table}

    def _end(self, sequences: list[Sequence]) -> None:
        self.scheduler.remove(sequences)
        for sequence in sequences:
            del self.alive[sequence.key]
        self._follow_releases()


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=80, stateful_step_count=40)
