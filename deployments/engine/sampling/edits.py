"""Edits of the logits before the temperature: allowed tokens, bias, bans and penalties; knows nothing of the draw."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deployments.engine.sampling.sequence_state import Ids, SequenceState


def edit_logits(
    logits: Tensor, states: Sequence[SequenceState], positions: Sequence[int], outputs: Sequence[Sequence[int]]
) -> None:
    """Applies to each row of `logits`, in place, what its sequence asks for, in the order that SamplingParams gives.

    `positions` and `outputs` are the number and the ids of the tokens generated so far. A kind of edit that no row
    needs costs nothing; one that some rows need touches only the logits concerned (`allowed` the rows concerned).
    """
    _keep_allowed(logits, states)
    _add_bias(logits, states)
    _ban(logits, states, positions, outputs)
    _penalise(logits, states, outputs)


def _keep_allowed(logits: Tensor, states: Sequence[SequenceState]) -> None:
    allowed = {row: state.allowed for row, state in enumerate(states) if state.allowed is not None}
    if not allowed:
        return
    where = _index(logits, list(allowed), list(allowed.values()))
    kept = logits[where]
    logits[torch.tensor(list(allowed), device=logits.device)] = -torch.inf
    logits[where] = kept


def _add_bias(logits: Tensor, states: Sequence[SequenceState]) -> None:
    rows = [row for row, state in enumerate(states) if len(state.bias_ids)]
    if not rows:
        return
    where = _index(logits, rows, [states[row].bias_ids for row in rows])
    bias = _tensor(logits, np.concatenate([states[row].bias_values for row in rows]))
    before = logits[where]
    logits[where] = _finite_like(before, before.double() + bias)


def _ban(
    logits: Tensor, states: Sequence[SequenceState], positions: Sequence[int], outputs: Sequence[Sequence[int]]
) -> None:
    banned = {}
    for row, state in enumerate(states):
        if token_ids := state.banned(positions[row], outputs[row]):
            banned[row] = np.array(token_ids, dtype=np.int64)
    if banned:
        logits[_index(logits, list(banned), list(banned.values()))] = -torch.inf


def _penalise(logits: Tensor, states: Sequence[SequenceState], outputs: Sequence[Sequence[int]]) -> None:
    histories = {}
    for row, state in enumerate(states):
        if state.history is not None:
            state.history.follow(outputs[row])
            if len(state.history.token_ids):
                histories[row] = state.history
    if not histories:
        return
    rows = list(histories)
    where = _index(logits, rows, [history.token_ids for history in histories.values()])
    lengths = [len(history.token_ids) for history in histories.values()]
    counts = _tensor(logits, np.concatenate([history.output_counts for history in histories.values()]))
    params = [states[row].params for row in rows]
    repetition = _tensor(logits, np.repeat([p.repetition_penalty for p in params], lengths))
    frequency = _tensor(logits, np.repeat([p.frequency_penalty for p in params], lengths))
    presence = _tensor(logits, np.repeat([p.presence_penalty for p in params], lengths))

    before = logits[where]
    score = before.double()
    score = torch.where(score > 0, score / repetition, score * repetition)
    score -= frequency * counts + presence * (counts > 0)
    logits[where] = _finite_like(before, score)


def _finite_like(before: Tensor, after: Tensor) -> Tensor:
    """`after` in the type of `before`: what overflowed becomes the largest number, what was banned stays so.

    An infinity made here would look like a ban, or like the output of a broken model.
    """
    limits = torch.finfo(before.dtype)
    return torch.where(before.isneginf(), before, after.clamp(limits.min, limits.max).to(before.dtype))


def _index(logits: Tensor, rows: Sequence[int], token_ids: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    """The index of all given tokens of all given rows."""
    row_of_each = np.repeat(np.array(rows, dtype=np.int64), [len(ids) for ids in token_ids])
    return _tensor(logits, row_of_each), _tensor(logits, np.concatenate(token_ids))


def _tensor(logits: Tensor, values: NDArray[np.int64] | NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values).to(logits.device)
