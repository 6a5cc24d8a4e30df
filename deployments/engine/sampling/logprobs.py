"""Log-probabilities of the raw model output, as plain data; knows nothing of what sampling does to the logits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from deployments.engine.protocol import RawLogprobs
from deployments.engine.sampling.ranking import largest

_MAX_ROWS = 32


def token_logprobs(logits: Tensor, token_ids: Sequence[int], num_top: Sequence[int]) -> list[RawLogprobs]:
    """For each row of `logits` the log-probabilities of its token and of its `num_top` likeliest (-1: of all).

    Works through a few rows at a time, so that long prompts need little memory.
    """
    results: list[RawLogprobs] = []
    for start in range(0, len(token_ids), _MAX_ROWS):
        rows = slice(start, start + _MAX_ROWS)
        results.extend(_few_rows(logits[rows], token_ids[rows], num_top[rows]))
    return results


def _few_rows(logits: Tensor, token_ids: Sequence[int], num_top: Sequence[int]) -> list[RawLogprobs]:
    vocab_size = logits.shape[1]
    logprobs = logits.log_softmax(1)
    chosen = logprobs.gather(1, torch.tensor(token_ids, device=logits.device).unsqueeze(1)).squeeze(1).tolist()
    counts = [vocab_size if count < 0 else min(count, vocab_size) for count in num_top]
    top: dict[int, tuple[list[float], list[int]]] = {}
    asked = [row for row, count in enumerate(counts) if count]
    if asked:
        values, indices = largest(logprobs[torch.tensor(asked, device=logits.device)], max(counts))
        for place, row in enumerate(asked):
            top[row] = values[place, : counts[row]].tolist(), indices[place, : counts[row]].tolist()
    results = []
    for row, (token_id, logprob) in enumerate(zip(token_ids, chosen, strict=True)):
        top_values, top_ids = top.get(row, ([], []))
        results.append(RawLogprobs(token_id, logprob, tuple(top_ids), tuple(top_values)))
    return results
