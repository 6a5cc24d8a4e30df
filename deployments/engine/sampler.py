"""The sampler: one token for each row of a batch of logits, by the parameters of its sequence; knows no model."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deployments.engine.protocol import RawLogprobs
from deployments.engine.sampling.draw import Draw, TorchDraw
from deployments.engine.sampling.edits import edit_logits
from deployments.engine.sampling.logprobs import token_logprobs
from deployments.engine.sampling.sequence_state import SequenceState
from deployments.errors import GenerationFailed, InvalidRequest, ServiceError
from deployments.types import SamplingParams

_BROKEN_OUTPUT = "the model's output is not a distribution"


@dataclass(frozen=True, slots=True)
class SamplerRow:
    """The sequence that a row of logits belongs to.

    `position` is the number of output tokens before the one to draw. `state` is what `Sampler.new_state` gave for this
    sequence; without it the row costs more (with penalties, time in the length of the prompt) and gives the same.
    """

    params: SamplingParams
    sequence_index: int
    position: int
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]
    state: SequenceState | None = None


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """What was drawn, row by row.

    `failed` holds the error of each row without a token, by the row's index: such a row harms no other. Its entry in
    `token_ids` is -1. `logprobs` has an entry for each row, None where none were asked for or the row failed.
    """

    token_ids: list[int]
    logprobs: list[RawLogprobs | None]
    failed: dict[int, ServiceError]


class Sampler:
    """Chooses tokens; holds no state of its own, so one serves every batch of a model.

    The token of a row is a function of its logits, its parameters, its tokens, and one random number that is a
    function of (seed, sequence_index, position): it does not depend on the other rows (on CPU to the last bit).

    A row fails alone: with GenerationFailed if the model gave NaN, +inf or nothing but -inf, and with InvalidRequest if
    its own constraints (allowed tokens, bad words, the mask of min_tokens) leave no token that the model can give.
    No constraint is ever dropped to save such a row.
    """

    def __init__(
        self,
        vocab_size: int,
        eos_token_ids: frozenset[int],
        device: torch.device | str = "cpu",
        *,
        draw: Draw | None = None,
    ) -> None:
        """`vocab_size` is the number of columns of the logits, which may be more than the tokenizer has tokens.

        The work is done on `device`; logits from elsewhere are copied there. `draw` does the part that looks at every
        logit; None does it by torch.
        """
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._device = torch.device(device)
        self._draw = draw or TorchDraw(vocab_size, self._device)

    def new_state(self, params: SamplingParams, prompt_token_ids: Sequence[int]) -> SequenceState:
        """The memory of one sequence, to be handed in with each of its rows."""
        return SequenceState(params, prompt_token_ids, vocab_size=self._vocab_size, eos_token_ids=self._eos_token_ids)

    @torch.inference_mode()
    def sample(self, logits: Tensor, rows: Sequence[SamplerRow]) -> SampledTokens:
        """One token for each row of `logits` [R, vocab_size], float32 or float64, which stay as they are.

        Raises ValueError if the shape or type is another.
        """
        logits = self._checked(logits, len(rows))
        if not rows:
            return SampledTokens([], [], {})
        maxima, likeliest = self._draw.row_maxima(logits)
        token_ids = likeliest.tolist()
        failed: dict[int, ServiceError] = {
            row: GenerationFailed(_BROKEN_OUTPUT)
            for row, maximum in enumerate(maxima.tolist())
            if not math.isfinite(maximum)
        }
        states = [row.state or self.new_state(row.params, row.prompt_token_ids) for row in rows]
        changed = [
            index
            for index, row in enumerate(rows)
            if index not in failed and (states[index].edits_logits or not _is_greedy(row.params))
        ]
        for start in range(0, len(changed), self._draw.rows_at_once):
            some = changed[start : start + self._draw.rows_at_once]
            results = self._choose(
                *_rows_of(logits, maxima, some, [states[index] for index in some]),
                [rows[index] for index in some],
                [states[index] for index in some],
            )
            for index, result in zip(some, results, strict=True):
                if isinstance(result, ServiceError):
                    failed[index] = result
                else:
                    token_ids[index] = result
        for index in failed:
            token_ids[index] = -1
        return SampledTokens(token_ids, _logprobs_of_rows(logits, rows, token_ids, failed), failed)

    @torch.inference_mode()
    def logprobs_of(self, logits: Tensor, next_token_ids: Sequence[int], num_top: int) -> list[RawLogprobs]:
        """For each row of `logits` the log-probability of the token that follows there, and of the likeliest ones.

        Raises GenerationFailed if a row is no distribution, ValueError if the shape or type is not that of `sample`.
        """
        logits = self._checked(logits, len(next_token_ids))
        if not next_token_ids:
            return []
        maxima, _ = self._draw.row_maxima(logits)
        if not bool(maxima.isfinite().all()):
            raise GenerationFailed(_BROKEN_OUTPUT)
        return token_logprobs(logits, next_token_ids, [num_top] * len(next_token_ids))

    def _choose(
        self, logits: Tensor, maxima: Tensor, rows: Sequence[SamplerRow], states: Sequence[SequenceState]
    ) -> list[int | ServiceError]:
        """The token, or the error, of each of these rows, whose logits it may change."""
        if any(state.edits_logits for state in states):
            edit_logits(logits, states, [row.position for row in rows], [row.output_token_ids for row in rows])
            maxima, likeliest = self._draw.row_maxima(logits)
            results: list[int | ServiceError] = list(likeliest.tolist())
            for index, maximum in enumerate(maxima.tolist()):
                if not math.isfinite(maximum):
                    results[index] = InvalidRequest("the constraints of the request leave no token to generate")
        else:
            results = [0] * len(rows)
        drawn = [
            index
            for index, row in enumerate(rows)
            if not _is_greedy(row.params) and not isinstance(results[index], ServiceError)
        ]
        if drawn:
            params = [rows[index].params for index in drawn]
            numbers = [states[index].uniform(rows[index].sequence_index, rows[index].position) for index in drawn]
            where = torch.tensor(drawn, device=logits.device)
            everything = len(drawn) == len(rows)
            tokens = self._draw.draw_tokens(
                logits if everything else logits[where],
                maxima if everything else maxima[where],
                params,
                torch.tensor(numbers, dtype=torch.float64, device=logits.device),
            )
            for index, token_id in zip(drawn, tokens.tolist(), strict=True):
                results[index] = token_id
        return results

    def _checked(self, logits: Tensor, num_rows: int) -> Tensor:
        if logits.shape != (num_rows, self._vocab_size) or logits.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"expected float32 or float64 logits of shape {(num_rows, self._vocab_size)}, "
                f"got {logits.dtype} {tuple(logits.shape)}"
            )
        return logits.to(self._device)


def _rows_of(
    logits: Tensor, maxima: Tensor, rows: Sequence[int], states: Sequence[SequenceState]
) -> tuple[Tensor, Tensor]:
    """Logits and maxima of these rows: a copy, where they are not all or will be edited."""
    if len(rows) == len(logits) and not any(state.edits_logits for state in states):
        return logits, maxima
    where = torch.tensor(rows, device=logits.device)
    return logits[where], maxima[where]


def _is_greedy(params: SamplingParams) -> bool:
    return params.temperature == 0.0 or params.top_p == 0.0


def _logprobs_of_rows(
    logits: Tensor, rows: Sequence[SamplerRow], token_ids: Sequence[int], failed: Collection[int]
) -> list[RawLogprobs | None]:
    results: list[RawLogprobs | None] = [None] * len(rows)
    num_top = {
        index: row.params.logprobs
        for index, row in enumerate(rows)
        if row.params.logprobs is not None and index not in failed
    }
    if num_top:
        asked = list(num_top)
        raw = logits[torch.tensor(asked, device=logits.device)]
        found = token_logprobs(raw, [token_ids[index] for index in asked], list(num_top.values()))
        for index, entry in zip(asked, found, strict=True):
            results[index] = entry
    return results
