"""Who is computed in the next step. Pure bookkeeping: no torch, no asyncio, no clock.

Every step computes the next tokens of some sequences: one token for a sequence that is generating, a piece of the
prompt for one that is not there yet. Both are the same thing, "the tokens that are known but not computed", so
prompts, generation and recomputation after a preemption need no separate paths. Sequences join and leave between steps.
"""

from bisect import insort
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as ListOf
from dataclasses import dataclass

from deployments.engine.block_manager import BlockManager
from deployments.engine.prompt_lookup import PromptLookup
from deployments.engine.sequence import Sequence
from deployments.types import FinishReason

# Up to so many tokens a step's time is mostly that of reading the weights, and a guess costs little: on two cores and
# the default model 5 % for the first, 55 % for eight. With 8 sequences or more, guesses cost as much as they bring.
_MOST_ROWS_WITH_GUESSES = 8


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """Tokens start..end of a sequence, to be computed in this step.

    With `samples` they are the last that are known, and the step ends with the next one. `guesses` are tokens that may
    follow them, the last of the range: where they turn out right the step brings several tokens.
    """

    sequence: Sequence
    start: int
    end: int
    guesses: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        return self.end - self.start

    @property
    def samples(self) -> bool:
        return self.end - len(self.guesses) == self.sequence.num_tokens

    @property
    def num_logits(self) -> int:
        """For how many of its last positions the model's logits are needed."""
        if self.sequence.wants_prompt_logprobs and self.start < len(self.sequence.prompt_token_ids):
            return self.num_tokens
        return 1 + len(self.guesses) if self.samples else 0

    def token_ids(self) -> list[int]:
        return self.sequence.tokens(self.start, self.end - len(self.guesses)) + list(self.guesses)


@dataclass(frozen=True, slots=True)
class Batch:
    scheduled: tuple[ScheduledSequence, ...]

    @property
    def num_tokens(self) -> int:
        return sum(item.num_tokens for item in self.scheduled)


@dataclass(frozen=True, slots=True)
class Advanced:
    """What a step did for one sequence: the tokens it got, and whether the last of them ended it."""

    sequence: Sequence
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    stop_token_id: int | None


class Scheduler:
    """First come, first served, within `max_num_seqs` sequences and `max_batched_tokens` tokens for each step.

    When the cache is full, the sequence that came last gives its blocks back and is computed again later: nothing is
    lost, since its tokens are known. Without `chunked_prefill` a sequence's known tokens are computed in one piece.
    With `lookup`, sequences that generate guess ahead while a step has few tokens.
    """

    def __init__(
        self,
        block_manager: BlockManager,
        *,
        max_num_seqs: int,
        max_batched_tokens: int,
        chunked_prefill: bool = True,
        lookup: PromptLookup | None = None,
    ) -> None:
        self._blocks = block_manager
        self._max_num_seqs = max_num_seqs
        self._max_batched_tokens = max_batched_tokens
        self._chunked_prefill = chunked_prefill
        self._lookup = lookup
        # Both in the order of arrival, which is that of the keys.
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self._released: list[Sequence] = []
        self.num_preemptions = 0

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_pending_tokens(self) -> int:
        """Tokens that are known and not computed, but for the last of each sequence: prompts, mostly."""
        return sum(
            max(sequence.num_tokens - sequence.num_computed - 1, 0) for sequence in (*self._waiting, *self._running)
        )

    def add(self, sequence: Sequence) -> None:
        """Queues the sequence, whose key is above all before it; those of one request in the order of their index."""
        self._waiting.append(sequence)

    def remove(self, sequences: Iterable[Sequence]) -> None:
        """Forgets the sequences, wherever they are, and frees what they hold."""
        gone = {sequence.key for sequence in sequences}
        for sequence in [*self._running, *self._waiting]:
            if sequence.key in gone:
                self._release(sequence)
                if self._lookup is not None:
                    self._lookup.forget(sequence)
        self._running = [sequence for sequence in self._running if sequence.key not in gone]
        self._waiting = [sequence for sequence in self._waiting if sequence.key not in gone]

    def take_released(self) -> list[Sequence]:
        """The sequences that gave their cache back since the last call."""
        released, self._released = self._released, []
        return released

    def schedule(self) -> Batch | None:
        """The next step's batch, or None when there is nothing to compute."""
        scheduled: dict[int, ScheduledSequence] = {}
        budget = self._max_batched_tokens
        # Those that generate go first, so that a long prompt delays nobody by more than one step.
        for sequence in sorted(self._running, key=lambda sequence: sequence.num_tokens - sequence.num_computed > 1):
            if sequence not in self._running:
                continue  # preempted in this very step
            end = self._end(sequence, budget, is_first=not scheduled)
            if end > sequence.num_computed:
                preempted = self._make_room(sequence, end)
                budget += sum(scheduled.pop(other.key).num_tokens for other in preempted if other.key in scheduled)
                if sequence not in preempted:
                    scheduled[sequence.key] = ScheduledSequence(sequence, sequence.num_computed, end)
                    budget -= end - sequence.num_computed
        for sequence in list(self._waiting):
            if len(self._running) >= self._max_num_seqs or budget < 1:
                break
            if self._awaits_sibling(sequence):
                continue
            if not self._blocks.can_admit(sequence):
                break
            self._blocks.admit(sequence)
            end = self._end(sequence, budget, is_first=not scheduled)
            if end <= sequence.num_computed or not self._blocks.extend(sequence, end):
                self._blocks.release(sequence)
                break
            self._waiting.remove(sequence)
            insort(self._running, sequence, key=_arrival)
            scheduled[sequence.key] = ScheduledSequence(sequence, sequence.num_computed, end)
            budget -= end - sequence.num_computed
        if self._lookup is not None:
            self._guess(self._lookup, scheduled, budget)
        return Batch(tuple(scheduled.values())) if scheduled else None

    def update(self, batch: Batch, token_ids: Mapping[int, ListOf[int]]) -> list[Advanced]:
        """Records a computed batch and the tokens sampled for it, by the key of the sequence.

        A sequence has one token more than guesses that were right; those after its end do not count.
        """
        advanced = []
        for item in batch.scheduled:
            sequence = item.sequence
            sampled = token_ids.get(sequence.key, ())
            if sampled:
                advanced.append(_advance(sequence, sampled))
            # Of the guesses, those that were right are computed, and the token after them is not.
            self._blocks.commit(sequence, min(item.end, sequence.num_tokens - bool(sampled)))
            if self._lookup is not None and item.guesses:
                self._lookup.learn(sequence, len(item.guesses), max(len(sampled) - 1, 0))
        self.remove([item.sequence for item in advanced if item.finish_reason is not None])
        return advanced

    def _end(self, sequence: Sequence, budget: int, *, is_first: bool) -> int:
        """Up to which token the sequence can be computed now."""
        wanted = sequence.num_tokens - sequence.num_computed
        if self._chunked_prefill:
            return sequence.num_computed + min(wanted, budget)
        # In one piece: a prompt above the budget has a step of its own.
        return sequence.num_tokens if wanted <= budget or is_first else sequence.num_computed

    def _guess(self, lookup: PromptLookup, scheduled: dict[int, ScheduledSequence], budget: int) -> None:
        """Lets the sequences of a small batch guess ahead, as far as budget and cache have room that nobody wants."""
        budget = min(budget, _MOST_ROWS_WITH_GUESSES - sum(item.num_tokens for item in scheduled.values()))
        for num_before, (key, item) in enumerate(list(scheduled.items())):
            sequence = item.sequence
            # Their tokens, and the one after them, must be wanted and fit.
            wanted = sequence.params.max_tokens - len(sequence.output_token_ids)
            room = sequence.context_length - sequence.num_tokens
            share = -(-budget // (len(scheduled) - num_before))
            most = min(share, wanted - 1, room - 1)
            if most < 1 or not item.samples or item.num_logits > 1:
                continue
            guesses = lookup.guess(sequence, most)
            if guesses and self._blocks.extend(sequence, item.end + len(guesses)):
                scheduled[key] = ScheduledSequence(sequence, item.start, item.end + len(guesses), tuple(guesses))
                budget -= len(guesses)

    def _make_room(self, sequence: Sequence, num_tokens: int) -> list[Sequence]:
        """Finds blocks for the sequence, if need be by preempting those that came last, itself at the end; they are
        returned."""
        preempted: list[Sequence] = []
        while sequence not in preempted and not self._blocks.extend(sequence, num_tokens):
            last = self._running.pop()
            self._release(last)
            insort(self._waiting, last, key=_arrival)
            preempted.append(last)
            self.num_preemptions += 1
        return preempted

    def _awaits_sibling(self, sequence: Sequence) -> bool:
        """Whether a sibling computes the same prompt at this moment, so that waiting for it spares the computation."""
        num_prompt = len(sequence.prompt_token_ids)
        if sequence.index == 0 or not self._blocks.can_share(num_prompt):
            return False
        return any(
            other.group == sequence.group and other.index == 0 and other.num_computed < num_prompt
            for other in self._running
        )

    def _release(self, sequence: Sequence) -> None:
        self._blocks.release(sequence)
        self._released.append(sequence)


def _advance(sequence: Sequence, sampled: ListOf[int]) -> Advanced:
    finish_reason = stop_token_id = None
    num_taken = 0
    for token_id in sampled:
        num_taken += 1
        finish_reason, stop_token_id = sequence.append(token_id)
        if finish_reason is not None:
            break
    return Advanced(sequence, tuple(sampled[:num_taken]), finish_reason, stop_token_id)


def _arrival(sequence: Sequence) -> int:
    return sequence.key
