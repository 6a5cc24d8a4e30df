"""The chunks of a streamed text completion: one choice each, indexes and usage in order. Pure."""

from collections.abc import Iterator
from typing import Any

from deployments.types import GenerateChunk, Usage
from serve_app.dialects.totalgpt.call import Envelope, usage_object
from serve_app.dialects.totalgpt.completion_choices import ChoiceWriter, CompletionFormat, EchoedPrompt, is_empty
from serve_app.dialects.totalgpt.fields import StreamOptions
from serve_app.dialects.totalgpt.logprobs import Positions
from serve_app.use_cases.generate import PromptChunk


class CompletionStream:
    """Turns the interleaved chunks of all prompts into those of the answer."""

    def __init__(self, envelope: Envelope, form: CompletionFormat, options: StreamOptions) -> None:
        self._envelope = envelope
        self._form = form
        self._options = options
        self._prompts: dict[int, _PromptState] = {}
        self._usage = Usage(0, 0)

    def write(self, item: PromptChunk, echoed: EchoedPrompt | None) -> Iterator[dict[str, Any]]:
        """What can be sent now that `item` is here. `echoed` is needed with the first item of each prompt."""
        state = self._prompts.get(item.prompt_index)
        if state is None:
            state = self._prompts[item.prompt_index] = _PromptState(item, echoed, self._form)
        if item.chunk.usage is not None:
            self._usage += item.chunk.usage
        for writer, chunk in state.ready(item.chunk):
            choice = writer.write(chunk, state.positions)
            if not is_empty(choice):
                yield self._envelope.around([choice], **self._running_usage(state, writer))

    def write_usage(self) -> dict[str, Any] | None:
        """The chunk after the last one, where the client asked for it."""
        if not self._options.include_usage:
            return None
        completion_tokens = 0 if self._form.drop_output else self._usage.completion_tokens
        usage = Usage(self._usage.prompt_tokens, completion_tokens, self._usage.cached_tokens)
        return self._envelope.around([], usage=usage_object(usage))

    def _running_usage(self, state: "_PromptState", writer: ChoiceWriter) -> dict[str, Any]:
        if not self._options.include_usage:
            return {}
        if not self._options.continuous_usage_stats:
            return {"usage": None}
        return {"usage": usage_object(Usage(state.num_prompt_tokens, writer.num_tokens))}


class _PromptState:
    """The choices of one prompt. Chunks wait until the prompt's log-probabilities are there, if these are echoed:
    they come with sequence 0, which need not be the first to move."""

    def __init__(self, item: PromptChunk, echoed: EchoedPrompt | None, form: CompletionFormat) -> None:
        self.num_prompt_tokens = len(item.prompt_token_ids)
        self.positions: Positions | None = None
        self._writers = [
            ChoiceWriter(item.prompt_index * form.n + index, item.prompt_token_ids, echoed, form)
            for index in range(form.n)
        ]
        self._waits = form.needs_prompt_positions
        self._waiting: list[GenerateChunk] = []

    def ready(self, chunk: GenerateChunk) -> Iterator[tuple[ChoiceWriter, GenerateChunk]]:
        self._waiting.append(chunk)
        if chunk.prompt_logprobs is not None:
            self.positions = chunk.prompt_logprobs
            self._waits = False
        if self._waits:
            return
        waiting, self._waiting = self._waiting, []
        for waited in waiting:
            yield self._writers[waited.index], waited
