"""Counts what of an answer was delivered, or can be at most. Pure; knows no price."""

from deployments.types import GenerateChunk, GenerateRequest, GenerateResult
from serve_app.ledger.entries import Counts


def most(request: GenerateRequest, *, drop_output: bool) -> Counts:
    """What the answer to one prompt can come to."""
    prompt_tokens = len(request.prompt_token_ids)
    if drop_output:
        return Counts(prompt_tokens)
    return Counts(
        prompt_tokens,
        request.num_sequences * request.sampling.max_tokens,
        request.num_sequences * (request.sampling.max_characters or 0),
    )


def whole(result: GenerateResult, *, drop_output: bool) -> Counts:
    """A whole answer to one prompt: the code points that it shows, and the tokens of every sequence, also of those that
    were not among the best."""
    usage = result.usage
    if drop_output:
        return Counts(usage.prompt_tokens)
    return Counts(
        usage.prompt_tokens, usage.completion_tokens, sum(len(sequence.text) for sequence in result.sequences)
    )


class StreamCounts:
    """Counts a stream piece by piece, as its pieces are delivered.

    Tokens of a piece that shows nothing, because their text is held back, count with the next piece of their sequence
    that shows something. A prompt counts with the first piece that it got an answer by.
    """

    def __init__(self, *, detokenize: bool, drop_output: bool) -> None:
        self._detokenize = detokenize
        self._drop_output = drop_output
        self._prompts: set[int] = set()
        self._held_back: dict[tuple[int, int], int] = {}

    def add(self, prompt_index: int, num_prompt_tokens: int, chunk: GenerateChunk) -> Counts:
        """What this piece adds to what was delivered."""
        sequence = (prompt_index, chunk.index)
        num_tokens = self._held_back.pop(sequence, 0) + len(chunk.token_ids)
        if not self._shows_something(chunk):
            self._held_back[sequence] = num_tokens
            return Counts()
        prompt_tokens = 0 if prompt_index in self._prompts else num_prompt_tokens
        self._prompts.add(prompt_index)
        return Counts(prompt_tokens) if self._drop_output else Counts(prompt_tokens, num_tokens, len(chunk.text))

    def _shows_something(self, chunk: GenerateChunk) -> bool:
        is_end = chunk.finish_reason is not None
        return bool(chunk.text) or is_end or chunk.logprobs is not None or not self._detokenize
