"""What the parameters of one sequence ask of its logits, worked out once and kept up to date; knows no tensors."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from deployments.engine.sampling.uniforms import uniforms
from deployments.types import SamplingParams

Ids = NDArray[np.int64]

_UNIFORMS_AT_ONCE = 64


class SequenceState:
    """The sampler's memory of one sequence: it saves work between the tokens of a sequence and changes no result.

    It belongs to one sequence, whose parameters and prompt are fixed and whose output only grows. Token ids outside
    the vocabulary have no logit and are left out: a bias for them does nothing, a ban of them neither.
    """

    __slots__ = (
        *("_bad_words", "_end_token_ids", "_first_position", "_uniforms"),
        *("allowed", "bias_ids", "bias_values", "history", "params"),
    )

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        *,
        vocab_size: int,
        eos_token_ids: frozenset[int],
    ) -> None:
        self.params = params
        self._uniforms: list[float] = []
        self._first_position = 0
        self.allowed: Ids | None = None
        if params.allowed_token_ids is not None:
            self.allowed = _ids(_within(params.allowed_token_ids, vocab_size))
        bias = {token_id: value for token_id, value in params.logit_bias if 0 <= token_id < vocab_size}
        self.bias_ids = _ids(bias)
        self.bias_values = np.fromiter(bias.values(), np.float64, len(bias))
        self._bad_words = _BadWords(params.bad_words_token_ids, vocab_size)
        self._end_token_ids: list[int] = []
        if params.min_tokens > 0:
            ends = set(params.stop_token_ids) if params.ignore_eos else eos_token_ids.union(params.stop_token_ids)
            self._end_token_ids = _within(ends, vocab_size)
        self.history: TokenHistory | None = None
        if params.repetition_penalty != 1.0:
            self.history = TokenHistory(prompt_token_ids, vocab_size)
        elif params.presence_penalty != 0.0 or params.frequency_penalty != 0.0:
            self.history = TokenHistory((), vocab_size)

    @property
    def edits_logits(self) -> bool:
        """Whether any position of this sequence may need an edit before the temperature."""
        return (
            self.allowed is not None
            or len(self.bias_ids) > 0
            or len(self._end_token_ids) > 0
            or self._bad_words.exist
            or self.history is not None
        )

    def uniform(self, sequence_index: int, position: int) -> float:
        """The random number of a position, which `uniforms` gives: worked out for many positions at a time, since a
        call takes as long for one as for a hundred."""
        if not 0 <= position - self._first_position < len(self._uniforms):
            ahead = range(position, position + _UNIFORMS_AT_ONCE)
            self._first_position = position
            self._uniforms = uniforms(
                [self.params.seed] * len(ahead), [sequence_index] * len(ahead), list(ahead)
            ).tolist()
        return self._uniforms[position - self._first_position]

    def banned(self, position: int, output_token_ids: Sequence[int]) -> list[int]:
        """The tokens that bad words and the minimum length exclude from this position."""
        banned = self._bad_words.banned_after(output_token_ids)
        if position < self.params.min_tokens:
            banned.extend(self._end_token_ids)
        return banned


class _BadWords:
    """Bans the last token of a sequence where the output ends in the tokens before it.

    As in vLLM only generated tokens count: a bad word that starts in the prompt is not recognised.
    """

    __slots__ = ("_always", "_by_last_token", "exist")

    def __init__(self, sequences: Iterable[Sequence[int]], vocab_size: int) -> None:
        self._always: list[int] = []
        self._by_last_token: dict[int, list[tuple[tuple[int, ...], int]]] = {}
        for sequence in sequences:
            if not sequence or not 0 <= sequence[-1] < vocab_size:
                continue
            prefix, last = tuple(sequence[:-1]), sequence[-1]
            if prefix:
                self._by_last_token.setdefault(prefix[-1], []).append((prefix, last))
            else:
                self._always.append(last)
        self.exist = bool(self._always or self._by_last_token)

    def banned_after(self, output_token_ids: Sequence[int]) -> list[int]:
        banned = list(self._always)
        if self._by_last_token and output_token_ids:
            for prefix, last in self._by_last_token.get(output_token_ids[-1], ()):
                if tuple(output_token_ids[-len(prefix) :]) == prefix:
                    banned.append(last)
        return banned


class TokenHistory:
    """The distinct tokens of a sequence, and how often each was generated; a new token costs constant time."""

    __slots__ = ("_counts", "_ids", "_num_output_tokens", "_slots", "_vocab_size")

    def __init__(self, prompt_token_ids: Iterable[int], vocab_size: int) -> None:
        distinct = _within(prompt_token_ids, vocab_size)
        self._vocab_size = vocab_size
        self._slots = {token_id: slot for slot, token_id in enumerate(distinct)}
        self._ids = _ids(distinct)
        self._counts = np.zeros(len(distinct))
        self._num_output_tokens = 0

    def follow(self, output_token_ids: Sequence[int]) -> None:
        """Counts the tokens that the output gained since the last call."""
        for token_id in output_token_ids[self._num_output_tokens :]:
            if 0 <= token_id < self._vocab_size:
                slot = self._slot(token_id)
                self._counts[slot] += 1.0
        self._num_output_tokens = len(output_token_ids)

    @property
    def token_ids(self) -> Ids:
        return self._ids[: len(self._slots)]

    @property
    def output_counts(self) -> NDArray[np.float64]:
        """For each of `token_ids` how often it was generated; 0 for those of the prompt alone."""
        return self._counts[: len(self._slots)]

    def _slot(self, token_id: int) -> int:
        slot = self._slots.setdefault(token_id, len(self._slots))
        if slot == len(self._ids):
            room = max(64, slot)
            self._ids = np.concatenate([self._ids, np.zeros(room, np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(room)])
        self._ids[slot] = token_id
        return slot


def _within(token_ids: Iterable[int], vocab_size: int) -> list[int]:
    """The distinct ids that the vocabulary has, in the order of their first appearance."""
    return [token_id for token_id in dict.fromkeys(token_ids) if 0 <= token_id < vocab_size]


def _ids(token_ids: Iterable[int]) -> Ids:
    return np.array(list(token_ids), dtype=np.int64)
