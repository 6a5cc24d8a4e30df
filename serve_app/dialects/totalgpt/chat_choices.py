"""From canonical answers to the choices of a chat completion, whole or in pieces. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from deployments.types import GenerateChunk, SequenceOutput, Usage
from serve_app.dialects.totalgpt.call import Envelope, usage_object
from serve_app.dialects.totalgpt.fields import StreamOptions
from serve_app.dialects.totalgpt.logprobs import chat_logprobs
from serve_app.use_cases.generate import PromptChunk


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """What the client wants to see. `num_top`: how many alternatives to each token, None for no log-probabilities.

    `echoed` is the text of the message that the answer continues, where it is to be repeated.
    """

    n: int = 1
    num_top: int | None = None
    prompt_logprobs: int | None = None
    include_token_ids: bool = False
    as_token_ids: bool = False
    echoed: str = ""


def whole_choice(sequence: SequenceOutput, form: ChatFormat) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": sequence.index,
        "message": {"role": "assistant", "content": form.echoed + sequence.text, "refusal": None},
        "logprobs": _logprobs(sequence, form),
        "finish_reason": sequence.finish_reason,
        "stop_reason": sequence.stop_reason,
    }
    if form.include_token_ids:
        choice["token_ids"] = list(sequence.token_ids)
    return choice


class ChatStream:
    """The chunks of a streamed chat completion: the role first, then text, one choice each."""

    def __init__(self, envelope: Envelope, form: ChatFormat, options: StreamOptions) -> None:
        self._envelope = envelope
        self._form = form
        self._options = options
        self._usage = Usage(0, 0)
        self._num_tokens: dict[int, int] = {}

    def write(self, item: PromptChunk) -> Iterator[dict[str, Any]]:
        """What can be sent now that `item` is here."""
        chunk, form = item.chunk, self._form
        if chunk.usage is not None:
            self._usage += chunk.usage
        if chunk.index not in self._num_tokens:
            self._num_tokens[chunk.index] = 0
            opening = {"role": "assistant", "content": form.echoed}
            ids = {"prompt_token_ids": list(item.prompt_token_ids)} if form.include_token_ids else {}
            yield self._around(_piece(chunk.index, opening), item, ids)
        self._num_tokens[chunk.index] += len(chunk.token_ids)
        logprobs = _logprobs(chunk, form) if chunk.logprobs else None
        shows_ids = form.include_token_ids and bool(chunk.token_ids)
        if chunk.text or chunk.finish_reason is not None or logprobs is not None or shows_ids:
            delta = {"content": chunk.text} if chunk.text else {}
            choice = _piece(chunk.index, delta, logprobs, chunk)
            if form.include_token_ids:
                choice["token_ids"] = list(chunk.token_ids)
            yield self._around(choice, item, {})

    def write_usage(self) -> dict[str, Any] | None:
        """The chunk after the last one, where the client asked for it."""
        if not self._options.include_usage:
            return None
        return self._envelope.around([], usage=usage_object(self._usage))

    def _around(self, choice: dict[str, Any], item: PromptChunk, fields: dict[str, Any]) -> dict[str, Any]:
        if self._options.include_usage:
            fields = {**fields, "usage": None}
            if self._options.continuous_usage_stats:
                usage = Usage(len(item.prompt_token_ids), self._num_tokens[item.chunk.index])
                fields["usage"] = usage_object(usage)
        return self._envelope.around([choice], **fields)


def _piece(
    index: int,
    delta: dict[str, Any],
    logprobs: dict[str, Any] | None = None,
    chunk: GenerateChunk | None = None,
) -> dict[str, Any]:
    return {
        "index": index,
        "delta": delta,
        "logprobs": logprobs,
        "finish_reason": chunk.finish_reason if chunk is not None else None,
        "stop_reason": chunk.stop_reason if chunk is not None else None,
    }


def _logprobs(piece: SequenceOutput | GenerateChunk, form: ChatFormat) -> dict[str, Any] | None:
    if form.num_top is None:
        return None
    return chat_logprobs(piece.logprobs or (), num_top=form.num_top, as_token_ids=form.as_token_ids)
