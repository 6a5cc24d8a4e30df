"""Text completions: what a request may hold, what it means, and its routes."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from deployments.errors import InvalidParameter
from deployments.types import Usage
from serve_app.config import TotalGPTConfig
from serve_app.dialects.totalgpt import sse
from serve_app.dialects.totalgpt.call import Call, Envelope, make_envelope, once, read_call, usage_object
from serve_app.dialects.totalgpt.command import make_command
from serve_app.dialects.totalgpt.completion_choices import CompletionFormat, EchoedPrompt, whole_choices
from serve_app.dialects.totalgpt.completion_stream import CompletionStream
from serve_app.dialects.totalgpt.documents import documented
from serve_app.dialects.totalgpt.echo import echo_prompts
from serve_app.dialects.totalgpt.examples import COMPLETION_ANSWER, COMPLETION_EVENTS, COMPLETION_REQUESTS
from serve_app.dialects.totalgpt.fields import MAX_INT32, SamplingFields, StreamOptions
from serve_app.dialects.totalgpt.logprob_bound import check_logprob_bound
from serve_app.dialects.totalgpt.logprobs import more_logprobs
from serve_app.dialects.totalgpt.prompts import PROMPT_SCHEMA, to_prompts
from serve_app.dialects.totalgpt.respond import respond
from serve_app.dialects.totalgpt.sampling import check_num_logprobs, check_sampling
from serve_app.dialects.totalgpt.unsupported import GENERATION, refuse_unsupported
from serve_app.http.json_text import to_json
from serve_app.http.wire_model import parse
from serve_app.services import Services
from serve_app.use_cases.generate import GenerateCommand, PromptAnswer


class CompletionFields(SamplingFields):
    model: str | None = Field(None, description="A model id or alias; the model of the path, where there is one, wins.")
    prompt: Any = Field(json_schema_extra=PROMPT_SCHEMA)
    max_tokens: int = Field(
        16, ge=0, le=MAX_INT32, description="The largest number of tokens to generate; 0 only with `echo`."
    )
    logprobs: int | None = Field(
        None, ge=-1, description="Report log-probabilities of the tokens, and of this many alternatives; -1 for all."
    )
    echo: bool = Field(False, description="Whether the text begins with the prompt.")
    add_special_tokens: bool = Field(
        True, description="Whether the tokenizer adds its special tokens to a text prompt."
    )


def parse_completion(body: Mapping[str, Any], config: TotalGPTConfig) -> CompletionFields:
    """Raises InvalidParameter."""
    refuse_unsupported(body, GENERATION)
    fields = parse(CompletionFields, dict(body))
    if fields.max_tokens == 0 and not fields.echo:
        raise InvalidParameter("max_tokens must be at least 1, or 0 together with echo", "max_tokens")
    check_sampling(fields, body, config, max_tokens=fields.max_tokens)
    check_num_logprobs(fields.logprobs, "logprobs", config)
    return fields


def to_command(fields: CompletionFields, call: Call, config: TotalGPTConfig) -> GenerateCommand:
    """Raises InvalidParameter. A request for no tokens becomes one for a single token, which nobody sees."""
    echoed_logprobs = fields.logprobs if fields.echo else None
    command = make_command(
        fields,
        call,
        config,
        prompts=to_prompts(fields.prompt, add_special_tokens=fields.add_special_tokens, max_prompts=config.max_prompts),
        max_tokens=max(fields.max_tokens, 1),
        logprobs=fields.logprobs,
        prompt_logprobs=more_logprobs(echoed_logprobs, fields.prompt_logprobs),
    )
    return replace(command, drop_output=fields.max_tokens == 0)


def to_format(fields: CompletionFields) -> CompletionFormat:
    return CompletionFormat(
        n=fields.n,
        logprobs=fields.logprobs,
        prompt_logprobs=fields.prompt_logprobs,
        echo=fields.echo,
        drop_output=fields.max_tokens == 0,
        include_token_ids=fields.include_token_ids,
        as_token_ids=fields.return_tokens_as_token_ids,
    )


class TextCompletion:
    """One request to be answered, whole or in pieces."""

    def __init__(self, services: Services, call: Call, fields: CompletionFields) -> None:
        self._services = services
        self._model_id = call.model.base.id
        self._command = to_command(fields, call, services.config.totalgpt)
        self._form = to_format(fields)
        self._envelope: Envelope = make_envelope(call, prefix="cmpl", object_name="text_completion")
        self._options: StreamOptions = fields.stream_options
        self._is_truncated = fields.truncate_prompt_tokens is not None

    async def answer(self) -> bytes:
        await check_logprob_bound(self._command, self._model_id, self._services.graph.tokenizer)
        async with self._services.generation.answering(self._command) as answers:
            echoed = await self._echo(range(len(answers)), [answer.prompt_token_ids for answer in answers])
            if self._command.sampling.logprobs is None and self._command.sampling.prompt_logprobs is None:
                return self._render(answers, echoed)
            # Log-probabilities can take a second to write; the event loop has others to serve.
            return await asyncio.to_thread(self._render, answers, echoed)

    def _render(self, answers: Sequence[PromptAnswer], echoed: Sequence[EchoedPrompt | None]) -> bytes:
        choices = [
            choice
            for prompt_index, answer in enumerate(answers)
            for choice in whole_choices(
                answer.result.sequences,
                answer.result.prompt_logprobs,
                prompt_index=prompt_index,
                prompt_token_ids=answer.prompt_token_ids,
                echoed=echoed[prompt_index],
                form=self._form,
            )
        ]
        usage = reduce(add, (answer.result.usage for answer in answers))
        if self._form.drop_output:
            usage = Usage(usage.prompt_tokens, 0, usage.cached_tokens)
        return to_json(self._envelope.around(choices, usage=usage_object(usage)))

    async def events(self) -> AsyncGenerator[bytes, None]:
        await check_logprob_bound(self._command, self._model_id, self._services.graph.tokenizer)
        stream = CompletionStream(self._envelope, self._form, self._options)
        echoed: dict[int, EchoedPrompt | None] = {}
        async with aclosing(self._services.generation.stream(self._command)) as items:
            async for item in items:
                if item.prompt_index not in echoed:
                    [echoed[item.prompt_index]] = await self._echo([item.prompt_index], [item.prompt_token_ids])
                for chunk in stream.write(item, echoed[item.prompt_index]):
                    yield sse.event(chunk)
        if (usage := stream.write_usage()) is not None:
            yield sse.event(usage)
        yield sse.DONE

    async def _echo(
        self, prompt_indexes: Sequence[int], prompt_token_ids: list[tuple[int, ...]]
    ) -> Sequence[EchoedPrompt | None]:
        if not self._form.echo:
            return [None] * len(prompt_token_ids)
        prompts = [self._command.prompts[index] for index in prompt_indexes]
        return await echo_prompts(
            self._services.graph.tokenizer,
            self._model_id,
            prompts,
            prompt_token_ids,
            is_truncated=self._is_truncated,
        )


def add_routes(routes: APIRouter, services: Services) -> None:
    @once(services)
    async def create_completion(request: Request) -> Response:
        """Continues one or several prompts. A model in the path, whose id may contain slashes, wins over `model`."""
        call = await read_call(request, services, request.path_params.get("model"))
        fields = parse_completion(call.body, services.config.totalgpt)
        completion = TextCompletion(services, call, fields)
        return await respond(request, completion, services.config.http, stream=fields.stream)

    document = documented(
        "Create a completion",
        body=CompletionFields,
        requests=COMPLETION_REQUESTS,
        answer=COMPLETION_ANSWER,
        events=COMPLETION_EVENTS,
    )
    of_model = {**document, "summary": "Create a completion with the model of the path"}
    routes.add_api_route("/v1/completions", create_completion, methods=["POST"], **document)
    for path in (
        "/completions",
        "/engines/{model:path}/completions",
        "/openai/deployments/{model:path}/completions",
    ):
        routes.add_api_route(path, create_completion, methods=["POST"], include_in_schema=False)
    routes.add_api_route("/v1/{model:path}/completions", create_completion, methods=["POST"], **of_model)
