"""Log-probabilities in the formats of completions, of chat, and of vLLM's `prompt_logprobs`. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deployments.types import PositionLogprobs, TokenLogprob

Positions = Sequence[PositionLogprobs | None]

_LOWEST = -9999.0
"""Stands for minus infinity, which JSON cannot spell."""


def finite(logprob: float) -> float:
    return max(logprob, _LOWEST)


def more_logprobs(one: int | None, other: int | None) -> int | None:
    """Of two numbers of alternatives the one that includes the other; -1 stands for all, None for not even one."""
    if -1 in (one, other):
        return -1
    return max((num for num in (one, other) if num is not None), default=None)


def likeliest(position: PositionLogprobs, num: int) -> tuple[TokenLogprob, ...]:
    """The first `num` alternatives, all of them for -1."""
    return position.top if num == -1 else position.top[:num]


def token_name(token: TokenLogprob, as_token_ids: bool) -> str:
    """Its text, or `token_id:<id>`, which tells apart tokens of the same text."""
    return f"token_id:{token.token_id}" if as_token_ids else token.text


def completion_logprobs(
    positions: Positions, first_token: TokenLogprob | None, *, num_top: int, as_token_ids: bool, text_offset: int
) -> tuple[dict[str, Any], int]:
    """The `logprobs` of a choice, for tokens whose text begins at `text_offset`, and the offset after them.

    A position without log-probabilities is the first of an echoed prompt, where `first_token` stands; its entries are
    null. `top_logprobs` holds the likeliest and the chosen token: up to one more than `num_top`, and fewer where
    tokens share one text.
    """
    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] = []
    text_offsets: list[int] = []
    for position in positions:
        chosen = position.chosen if position is not None else first_token
        if chosen is None:
            raise ValueError("a position without log-probabilities needs the token that stands there")
        tokens.append(token_name(chosen, as_token_ids))
        token_logprobs.append(None if position is None else finite(chosen.logprob))
        top_logprobs.append(None if position is None else _completion_top(position, num_top, as_token_ids))
        text_offsets.append(text_offset)
        text_offset += len(chosen.text)
    return {
        "tokens": tokens,
        "token_logprobs": token_logprobs,
        "top_logprobs": top_logprobs,
        "text_offset": text_offsets,
    }, text_offset


def _completion_top(position: PositionLogprobs, num_top: int, as_token_ids: bool) -> dict[str, float]:
    top: dict[str, float] = {}
    for token in (*likeliest(position, num_top), position.chosen):
        # Of tokens with one text the likeliest comes first and stays.
        top.setdefault(token_name(token, as_token_ids), finite(token.logprob))
    return top


def chat_logprobs(positions: Iterable[PositionLogprobs], *, num_top: int, as_token_ids: bool) -> dict[str, Any]:
    return {
        "content": [
            {
                **_chat_token(position.chosen, as_token_ids),
                "top_logprobs": [_chat_token(token, as_token_ids) for token in likeliest(position, num_top)],
            }
            for position in positions
        ],
        "refusal": None,
    }


def _chat_token(token: TokenLogprob, as_token_ids: bool) -> dict[str, Any]:
    # A token that is a part of a code point has no text of its own to give the bytes of.
    text_bytes = None if "\ufffd" in token.text else list(token.text.encode())
    return {"token": token_name(token, as_token_ids), "logprob": finite(token.logprob), "bytes": text_bytes}


def prompt_logprobs(positions: Positions, num_top: int) -> list[Mapping[str, Any] | None]:
    """vLLM's format: for each prompt token an object by token id, null for the first.

    `rank` counts from 1 and is null for a prompt token that is not among the reported alternatives.
    """
    return [None if position is None else _ranked(position, num_top) for position in positions]


def _ranked(position: PositionLogprobs, num_top: int) -> dict[str, Any]:
    top = likeliest(position, num_top)
    entries = {str(token.token_id): _ranked_token(token, rank) for rank, token in enumerate(top, start=1)}
    entries.setdefault(str(position.chosen.token_id), _ranked_token(position.chosen, None))
    return entries


def _ranked_token(token: TokenLogprob, rank: int | None) -> dict[str, Any]:
    return {"logprob": finite(token.logprob), "rank": rank, "decoded_token": token.text}
