"""One sequence of tokens on its way through the engine. Pure bookkeeping: no torch, no clock."""

from dataclasses import dataclass, field
from typing import Protocol

from deployments.types import AdapterRef, FinishReason, SamplingParams


class PreparedAdapter(Protocol):
    """An adapter in the form its model runner computes with. A sequence holds what it uses, so unloading an adapter
    takes nothing away from the sequences that run."""

    @property
    def ref(self) -> AdapterRef: ...

    @property
    def num_bytes(self) -> int: ...


@dataclass(slots=True, eq=False)
class Sequence:
    """The tokens of one of a request's outputs, and how far the model has computed them.

    key: unique within the engine, and above those that came before. group: the request it belongs to. index: its
    number within the request.
    num_computed: how many tokens, from the first, have their keys and values in the cache; 0 after a preemption.
    block_table: the cache blocks that hold them. num_cached: prompt tokens found in the
    cache when the sequence was first admitted; None before that. wants_prompt_logprobs: the logits of all prompt
    positions are needed, so none of them may come from the cache. adapter: what changes the model for this sequence.
    """

    key: int
    group: int
    index: int
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    eos_token_ids: frozenset[int]
    context_length: int
    cache_salt: str = ""
    output_token_ids: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_cached: int | None = None
    block_table: list[int] = field(default_factory=list)
    wants_prompt_logprobs: bool = False
    adapter: PreparedAdapter | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    def tokens(self, start: int, end: int) -> list[int]:
        """Token ids of the positions start..end, prompt and output together."""
        num_prompt = len(self.prompt_token_ids)
        if start >= num_prompt:
            return self.output_token_ids[start - num_prompt : end - num_prompt]
        ids = list(self.prompt_token_ids[start:end])
        if end > num_prompt:
            ids += self.output_token_ids[: end - num_prompt]
        return ids

    def append(self, token_id: int) -> tuple[FinishReason | None, int | None]:
        """Adds a sampled token; says whether it ends the sequence, and the stop token that did."""
        self.output_token_ids.append(token_id)
        params = self.params
        if len(self.output_token_ids) > params.min_tokens:
            if token_id in params.stop_token_ids:
                return FinishReason.STOP, token_id
            if token_id in self.eos_token_ids and not params.ignore_eos:
                return FinishReason.STOP, None
        if len(self.output_token_ids) >= params.max_tokens or self.num_tokens >= self.context_length:
            return FinishReason.LENGTH, None
        return None, None
