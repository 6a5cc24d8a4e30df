"""From canonical answers to the choices of a text completion, whole or in pieces. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deployments.types import FinishReason, GenerateChunk, PositionLogprobs, SequenceOutput, TokenLogprob
from serve_app.dialects.totalgpt.logprobs import Positions, completion_logprobs, prompt_logprobs


@dataclass(frozen=True, slots=True)
class CompletionFormat:
    """What the client wants to see.

    logprobs, prompt_logprobs: how many alternatives, None for no log-probabilities at all.
    drop_output: the client asked for no token, only for its prompt; the one token that was made is left out.
    """

    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    echo: bool = False
    drop_output: bool = False
    include_token_ids: bool = False
    as_token_ids: bool = False

    @property
    def needs_prompt_positions(self) -> bool:
        return self.echo and self.logprobs is not None


@dataclass(frozen=True, slots=True)
class EchoedPrompt:
    """A prompt as text, and its first token, which has no log-probability."""

    text: str
    first_token: TokenLogprob


class ChoiceWriter:
    """Writes the choice `index`, in one piece or several; the first of them echoes the prompt."""

    def __init__(
        self, index: int, prompt_token_ids: Sequence[int], echoed: EchoedPrompt | None, form: CompletionFormat
    ) -> None:
        self.num_tokens = 0
        self._index = index
        self._prompt_token_ids = prompt_token_ids
        self._echoed = echoed
        self._form = form
        self._text_offset = 0
        self._is_first = True

    def write(self, piece: GenerateChunk | SequenceOutput, prompt_positions: Positions | None) -> dict[str, Any]:
        """The next piece. `prompt_positions` are needed for the first one, where log-probabilities are echoed."""
        form, is_first = self._form, self._is_first
        self._is_first = False
        token_ids, text, finish_reason, stop_reason = (
            piece.token_ids,
            piece.text,
            piece.finish_reason,
            piece.stop_reason,
        )
        positions: list[PositionLogprobs | None] = list(piece.logprobs or ())
        if form.drop_output:
            token_ids, text, stop_reason, positions = (), "", None, []
            finish_reason = FinishReason.LENGTH if finish_reason is not None else None
        self.num_tokens += len(token_ids)
        first_token = None
        if is_first and self._echoed is not None:
            text = self._echoed.text + text
            first_token = self._echoed.first_token
            if form.needs_prompt_positions:
                positions = [*(prompt_positions or ()), *positions]
        choice: dict[str, Any] = {
            "index": self._index,
            "text": text,
            "logprobs": None,
            "finish_reason": finish_reason,
            "stop_reason": stop_reason,
        }
        if form.logprobs is not None:
            choice["logprobs"], self._text_offset = completion_logprobs(
                positions,
                first_token,
                num_top=form.logprobs,
                as_token_ids=form.as_token_ids,
                text_offset=self._text_offset,
            )
        if form.include_token_ids:
            choice["token_ids"] = list(token_ids)
            choice["prompt_token_ids"] = list(self._prompt_token_ids) if is_first else None
        return choice


def is_empty(choice: dict[str, Any]) -> bool:
    """Whether a piece tells the client nothing."""
    return (
        not choice["text"]
        and choice["finish_reason"] is None
        and not (choice["logprobs"] and choice["logprobs"]["tokens"])
        and not choice.get("token_ids")
        and not choice.get("prompt_token_ids")
    )


def whole_choices(
    sequences: Sequence[SequenceOutput],
    prompt_positions: Positions | None,
    *,
    prompt_index: int,
    prompt_token_ids: Sequence[int],
    echoed: EchoedPrompt | None,
    form: CompletionFormat,
) -> list[dict[str, Any]]:
    """The finished choices of one prompt."""
    shown_positions = None
    if form.prompt_logprobs is not None and prompt_positions is not None:
        shown_positions = prompt_logprobs(prompt_positions, form.prompt_logprobs)
    return [
        {
            **ChoiceWriter(prompt_index * form.n + sequence.index, prompt_token_ids, echoed, form).write(
                sequence, prompt_positions
            ),
            "prompt_logprobs": shown_positions,
        }
        for sequence in sequences
    ]
