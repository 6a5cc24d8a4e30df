"""The bound on the log-probabilities that one answer reports. Knows no HTTP."""

from deployments.errors import InvalidParameter
from deployments.graph import Tokenizer
from deployments.types import EncodeRequest, EncodeResult, Prompt, TextPrompt, TokenPrompt
from serve_app.use_cases.generate import GenerateCommand

MAX_LOGPROBS_PER_ANSWER = 500_000
"""Roughly 10 MB of JSON: 20 alternatives to each of 20,000 tokens, or 50,000 to each of ten."""

_MAX_SPECIAL_TOKENS = 16
"""Far more than any tokenizer adds to a text."""


async def check_logprob_bound(command: GenerateCommand, model_id: str, tokenizer: Tokenizer) -> None:
    """Raises InvalidParameter where the answer would report more than MAX_LOGPROBS_PER_ANSWER.

    The prompts are encoded only if their size does not already tell that they stay within the bound.
    """
    if command.sampling.logprobs is None and command.sampling.prompt_logprobs is None:
        return
    estimate = _estimate(command)
    if estimate is not None and estimate <= MAX_LOGPROBS_PER_ANSWER:
        return
    encoded = await tokenizer.encode(
        EncodeRequest(model_id, command.prompts, truncate_to=command.truncate_prompt_tokens)
    )
    num_logprobs = _count(command, encoded)
    if num_logprobs > MAX_LOGPROBS_PER_ANSWER:
        raise InvalidParameter(
            f"logprobs and prompt_logprobs ask for {num_logprobs} log-probabilities; "
            f"one answer may hold {MAX_LOGPROBS_PER_ANSWER}",
            "logprobs" if command.sampling.logprobs is not None else "prompt_logprobs",
        )


def _encoding(command: GenerateCommand, model_id: str) -> EncodeRequest:
    return EncodeRequest(model_id, command.prompts, truncate_to=command.truncate_prompt_tokens)


def _estimate(command: GenerateCommand) -> int | None:
    """No less than the answer would hold; None where the request alone does not tell."""
    logprobs, prompt_logprobs = command.sampling.logprobs, command.sampling.prompt_logprobs
    if -1 in (logprobs, prompt_logprobs) or command.max_tokens is None:
        return None
    num_output_positions = len(command.prompts) * (command.best_of or command.n) * command.max_tokens
    total = num_output_positions * _per_position(logprobs, 0)
    if prompt_logprobs is not None:
        for prompt in command.prompts:
            length = _longest(prompt)
            if length is None:
                return None
            total += length * _per_position(prompt_logprobs, 0)
    return total


def _longest(prompt: Prompt) -> int | None:
    """A token of text is at least one byte of it."""
    match prompt:
        case TokenPrompt(token_ids):
            return len(token_ids)
        case TextPrompt(text):
            return len(text.encode()) + _MAX_SPECIAL_TOKENS
        case _:
            return None


def _count(command: GenerateCommand, encoded: EncodeResult) -> int:
    per_output = _per_position(command.sampling.logprobs, encoded.vocab_size)
    per_prompt = _per_position(command.sampling.prompt_logprobs, encoded.vocab_size)
    total = 0
    for token_ids in encoded.prompt_token_ids:
        room = max(encoded.context_length - len(token_ids), 0)
        wanted = room if command.max_tokens is None else min(room, command.max_tokens)
        total += len(token_ids) * per_prompt + wanted * (command.best_of or command.n) * per_output
    return total


def _per_position(num_top: int | None, vocab_size: int) -> int:
    if num_top is None:
        return 0
    return vocab_size if num_top == -1 else num_top + 1
