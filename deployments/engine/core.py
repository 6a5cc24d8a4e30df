"""The engine's step: schedule, run, sample, update. Synchronous; knows no threads, no event loop and no text."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deployments.config import EngineConfig
from deployments.engine.block_manager import BlockManager
from deployments.engine.model_runner import ModelRunner
from deployments.engine.prompt_lookup import PromptLookup
from deployments.engine.protocol import EngineStats, EngineTotals, RawLogprobs, TokenDelta
from deployments.engine.sampler import Sampler, SamplerRow
from deployments.engine.sampling.sequence_state import SequenceState
from deployments.engine.scheduler import Advanced, Batch, ScheduledSequence, Scheduler
from deployments.engine.sequence import PreparedAdapter
from deployments.engine.sequence import Sequence as TokenSequence
from deployments.errors import GenerationFailed, ServiceError
from deployments.types import SamplingParams

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class StepResult:
    """What a step brought: new tokens by the group of their sequence, and why it failed some groups. `begun` are the
    groups whose first step it was. has_raised: the model raised, and so every group of the step failed."""

    deltas: dict[int, list[TokenDelta]] = field(default_factory=dict)
    failed: dict[int, ServiceError] = field(default_factory=dict)
    begun: list[int] = field(default_factory=list)
    has_raised: bool = False


@dataclass(slots=True)
class _Drawn:
    """The tokens that a step brings one sequence, and their log-probabilities where asked for."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[RawLogprobs] = field(default_factory=list)

    def add(self, token_id: int, logprobs: RawLogprobs | None) -> None:
        self.token_ids.append(token_id)
        if logprobs is not None:
            self.logprobs.append(logprobs)


class EngineCore:
    """Owns the sequences of all requests and the model that continues them. To be used from one thread."""

    def __init__(self, runner: ModelRunner, sampler: Sampler, config: EngineConfig) -> None:
        self._runner = runner
        self._sampler = sampler
        self._blocks = BlockManager(
            runner.num_blocks,
            config.block_size,
            enable_prefix_reuse=config.enable_prefix_reuse and runner.prefix_reuse,
        )
        self._scheduler = Scheduler(
            self._blocks,
            max_num_seqs=config.max_num_seqs,
            max_batched_tokens=config.max_batched_tokens,
            chunked_prefill=runner.chunked_prefill,
            # What computes a sequence in one piece cannot take a wrong guess back.
            lookup=PromptLookup() if config.speculation is not None and runner.chunked_prefill else None,
        )
        self._sequences: dict[int, list[TokenSequence]] = {}
        self._sampler_states: dict[int, SequenceState] = {}
        self._prompt_logprobs: dict[int, list[RawLogprobs | None]] = {}
        self._awaited: list[tuple[PreparedAdapter, Callable[[], None]]] = []
        self._unbegun: set[int] = set()
        self._num_steps = self._num_step_sequences = self._num_step_tokens = 0

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    def stats(self) -> EngineStats:
        return EngineStats(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            num_free_blocks=self._blocks.num_free,
            num_blocks=self._blocks.num_blocks,
            num_pending_tokens=self._scheduler.num_pending_tokens,
            totals=EngineTotals(
                steps=self._num_steps,
                step_sequences=self._num_step_sequences,
                step_tokens=self._num_step_tokens,
                prompt_tokens=self._blocks.num_prompt_tokens,
                cached_tokens=self._blocks.num_cached_tokens,
                preemptions=self._scheduler.num_preemptions,
            ),
        )

    def add(self, group: int, sequences: Sequence[TokenSequence]) -> None:
        self._sequences[group] = list(sequences)
        self._unbegun.add(group)
        for sequence in sequences:
            self._scheduler.add(sequence)

    def remove(self, group: int, indexes: Sequence[int] | None = None) -> None:
        """Ends the sequences of a group, or those of its sequences; what they held is free for the next step."""
        sequences = self._sequences.get(group, [])
        ended = [sequence for sequence in sequences if indexes is None or sequence.index in indexes]
        self._scheduler.remove(ended)
        self._release_caches()
        self._forget(ended)

    def when_unused(self, adapter: PreparedAdapter, call: Callable[[], None]) -> None:
        """Calls once no sequence uses the adapter: now, or within the step that ends the last."""
        self._awaited.append((adapter, call))
        self._announce_unused()

    def step(self) -> StepResult:
        """Computes the next tokens of some sequences.

        A model that raises, or answers with what is no number, fails the requests of this batch only.
        """
        batch = self._scheduler.schedule()
        self._release_caches()
        if batch is None:
            raise RuntimeError("sequences wait and none of them can be scheduled")
        result = StepResult(begun=self._count(batch))
        try:
            self._compute(batch, result)
        except Exception:
            # Out of memory, most likely: what is in the batch is lost, what waits is not.
            logger.exception("a step of %d tokens failed", batch.num_tokens)
            error = GenerationFailed("the model could not compute this request")
            result.failed.update({item.sequence.group: error for item in batch.scheduled})
            result.has_raised = True
        for group in result.failed:
            result.deltas.pop(group, None)
            self.remove(group)
        return result

    def check(self) -> None:
        """Computes a token in which no request has a part; raises what the model raises when even that fails.

        To be asked after a step that raised: a request that the model cannot compute does not make it fail, a device
        that is broken does, in this step and in every one to come.
        """
        sequence = TokenSequence(
            key=-1,
            group=-1,
            index=0,
            prompt_token_ids=(0,),
            params=SamplingParams(),
            eos_token_ids=frozenset(),
            context_length=2,
        )
        if not self._blocks.extend(sequence, 1):
            return  # sequences hold the whole cache: their steps will show it
        try:
            # A device may compute behind the caller's back; only what is fetched from it is certainly there.
            self._runner.run(Batch((ScheduledSequence(sequence, 0, 1),))).cpu()
        finally:
            self._blocks.release(sequence)
            self._runner.release(sequence)

    def _count(self, batch: Batch) -> list[int]:
        """Adds the step to the totals; answers the groups whose first it is."""
        self._num_steps += 1
        self._num_step_sequences += len(batch.scheduled)
        self._num_step_tokens += batch.num_tokens
        if not self._unbegun:
            return []
        begun = self._unbegun.intersection(item.sequence.group for item in batch.scheduled)
        self._unbegun -= begun
        return list(begun)

    def _compute(self, batch: Batch, result: StepResult) -> None:
        logits = self._runner.run(batch)
        if logits.dtype != torch.float64:
            logits = logits.float()
        sampling: list[tuple[ScheduledSequence, int]] = []
        first_row = 0
        for item in batch.scheduled:
            last_row = first_row + item.num_logits
            if item.sequence.wants_prompt_logprobs:
                try:
                    self._record_prompt_logprobs(item, logits[first_row:last_row])
                except GenerationFailed as error:
                    result.failed[item.sequence.group] = error
            if item.samples:
                sampling.append((item, last_row - 1 - len(item.guesses)))
            first_row = last_row
        drawn = {item.sequence.key: _Drawn() for item, _ in sampling}
        num_guessed = 0
        while sampling:
            sampling = self._sample(logits, sampling, drawn, num_guessed, result)
            num_guessed += 1
        for advanced in self._scheduler.update(batch, {key: tokens.token_ids for key, tokens in drawn.items()}):
            self._report(advanced, drawn[advanced.sequence.key].logprobs, result)
        self._release_caches()

    def _sample(
        self,
        logits: Tensor,
        sampling: Sequence[tuple[ScheduledSequence, int]],
        drawn: Mapping[int, "_Drawn"],
        num_guessed: int,
        result: StepResult,
    ) -> list[tuple[ScheduledSequence, int]]:
        """Draws a token for each of these sequences, from its row of `logits`, after `num_guessed` right guesses.

        Returns those whose next guess was right as well, with the row after it: there they go on.
        """
        indexes = [row for _, row in sampling]
        # Most steps only generate, and then every row is wanted: no copy.
        wanted = logits if len(indexes) == len(logits) else logits[indexes]
        rows = [self._sampler_row(item.sequence, drawn[item.sequence.key].token_ids) for item, _ in sampling]
        sampled = self._sampler.sample(wanted, rows)
        right = []
        for row, (item, index) in enumerate(sampling):
            if row in sampled.failed:
                # After a right guess the next step comes to the same point: what was drawn before is delivered first.
                if not num_guessed:
                    result.failed[item.sequence.group] = sampled.failed[row]
                continue
            drawn[item.sequence.key].add(sampled.token_ids[row], sampled.logprobs[row])
            if item.guesses[num_guessed : num_guessed + 1] == (sampled.token_ids[row],):
                right.append((item, index + 1))
        return right

    def _report(self, advanced: Advanced, logprobs: Sequence[RawLogprobs], result: StepResult) -> None:
        sequence = advanced.sequence
        delta = TokenDelta(
            index=sequence.index,
            token_ids=advanced.token_ids,
            logprobs=None if sequence.params.logprobs is None else tuple(logprobs[: len(advanced.token_ids)]),
            prompt_logprobs=self._take_prompt_logprobs(sequence),
            finish_reason=advanced.finish_reason,
            stop_token_id=advanced.stop_token_id,
            num_cached_tokens=sequence.num_cached or 0,
        )
        result.deltas.setdefault(sequence.group, []).append(delta)
        if advanced.finish_reason is not None:
            self._forget([sequence])

    def _record_prompt_logprobs(self, item: ScheduledSequence, logits: Tensor) -> None:
        """The logits at a position are those of the token after it, as long as that belongs to the prompt."""
        sequence = item.sequence
        num_top = sequence.params.prompt_logprobs
        next_token_ids = list(sequence.prompt_token_ids[item.start + 1 : item.end + 1])
        if num_top is not None and next_token_ids:
            recorded = self._prompt_logprobs.setdefault(sequence.key, [None])
            # After a preemption the prompt is computed again, from its beginning.
            del recorded[item.start + 1 :]
            recorded += self._sampler.logprobs_of(logits[: len(next_token_ids)], next_token_ids, num_top)

    def _take_prompt_logprobs(self, sequence: TokenSequence) -> tuple[RawLogprobs | None, ...] | None:
        if not sequence.wants_prompt_logprobs:
            return None
        sequence.wants_prompt_logprobs = False
        return tuple(self._prompt_logprobs.pop(sequence.key, [None]))

    def _release_caches(self) -> None:
        for sequence in self._scheduler.take_released():
            self._runner.release(sequence)

    def _forget(self, ended: Sequence[TokenSequence]) -> None:
        for sequence in ended:
            self._prompt_logprobs.pop(sequence.key, None)
            self._sampler_states.pop(sequence.key, None)
            self._sequences[sequence.group].remove(sequence)
            if not self._sequences[sequence.group]:
                del self._sequences[sequence.group]
                self._unbegun.discard(sequence.group)
        self._announce_unused()

    def _announce_unused(self) -> None:
        if not self._awaited:
            return
        in_use = {id(sequence.adapter) for sequences in self._sequences.values() for sequence in sequences}
        unused = [call for adapter, call in self._awaited if id(adapter) not in in_use]
        self._awaited = [(adapter, call) for adapter, call in self._awaited if id(adapter) in in_use]
        for call in unused:
            call()

    def _sampler_row(self, sequence: TokenSequence, drawn: Sequence[int]) -> SamplerRow:
        """`drawn` are the tokens that this step has brought the sequence so far."""
        if sequence.key not in self._sampler_states:
            self._sampler_states[sequence.key] = self._sampler.new_state(sequence.params, sequence.prompt_token_ids)
        output = [*sequence.output_token_ids, *drawn] if drawn else sequence.output_token_ids
        return SamplerRow(
            params=sequence.params,
            sequence_index=sequence.index,
            position=len(output),
            prompt_token_ids=sequence.prompt_token_ids,
            output_token_ids=output,
            state=self._sampler_states[sequence.key],
        )
