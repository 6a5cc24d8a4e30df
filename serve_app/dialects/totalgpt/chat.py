"""Chat completions: what a request may hold, what it means, and its routes."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from deployments.errors import InvalidParameter
from serve_app.config import TotalGPTConfig
from serve_app.dialects.totalgpt import sse
from serve_app.dialects.totalgpt.call import Call, make_envelope, once, read_call, usage_object
from serve_app.dialects.totalgpt.chat_choices import ChatFormat, ChatStream, whole_choice
from serve_app.dialects.totalgpt.command import make_command
from serve_app.dialects.totalgpt.documents import documented
from serve_app.dialects.totalgpt.examples import CHAT_ANSWER, CHAT_EVENTS, CHAT_REQUESTS
from serve_app.dialects.totalgpt.fields import MAX_INT32, SamplingFields
from serve_app.dialects.totalgpt.logprob_bound import check_logprob_bound
from serve_app.dialects.totalgpt.logprobs import prompt_logprobs
from serve_app.dialects.totalgpt.prompts import ChatFields, naming_messages, to_chat_prompt
from serve_app.dialects.totalgpt.respond import respond
from serve_app.dialects.totalgpt.sampling import check_num_logprobs, check_sampling
from serve_app.dialects.totalgpt.unsupported import CHAT, GENERATION, refuse_unsupported
from serve_app.http.json_text import to_json
from serve_app.http.wire_model import parse
from serve_app.services import Services
from serve_app.use_cases.generate import GenerateCommand, PromptAnswer


class ChatCompletionFields(ChatFields, SamplingFields):
    model: str | None = Field(None, description="A model id or alias; the model of the path, where there is one, wins.")
    max_tokens: int | None = Field(
        None,
        ge=1,
        le=MAX_INT32,
        description="The largest number of tokens to generate; the room that the context leaves where it is left out.",
    )
    max_completion_tokens: int | None = Field(
        None, ge=1, le=MAX_INT32, description="The same as `max_tokens`, which it wins over."
    )
    logprobs: bool = Field(False, description="Report log-probabilities of the tokens.")
    top_logprobs: int | None = Field(
        None, ge=-1, description="How many alternatives to each token to report, with `logprobs`; -1 for all."
    )
    echo: bool = Field(False, description="Whether the answer repeats the last message, where that is the assistant's.")
    add_special_tokens: bool = Field(False, description="Only false: the chat template adds the special tokens.")

    @property
    def longest(self) -> int | None:
        """None: the room that the prompt leaves. OpenAI's newer name for the limit wins."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def num_top(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


def parse_chat(body: Mapping[str, Any], config: TotalGPTConfig) -> ChatCompletionFields:
    """Raises InvalidParameter."""
    refuse_unsupported(body, (*GENERATION, *CHAT))
    fields = parse(ChatCompletionFields, {**body})
    check_sampling(fields, body, config, max_tokens=fields.longest)
    check_num_logprobs(fields.top_logprobs, "top_logprobs", config)
    if fields.top_logprobs is not None and not fields.logprobs:
        raise InvalidParameter("top_logprobs may be given only with logprobs: true", "top_logprobs")
    if fields.add_special_tokens:
        raise InvalidParameter(
            "add_special_tokens must be false: the chat template adds the special tokens", "add_special_tokens"
        )
    return fields


def to_command(fields: ChatCompletionFields, call: Call, config: TotalGPTConfig) -> GenerateCommand:
    """Raises InvalidParameter."""
    return make_command(
        fields,
        call,
        config,
        prompts=(to_chat_prompt(fields),),
        max_tokens=fields.longest,
        logprobs=fields.num_top,
        prompt_logprobs=fields.prompt_logprobs,
    )


def to_format(fields: ChatCompletionFields) -> ChatFormat:
    last = fields.messages[-1]
    return ChatFormat(
        n=fields.n,
        num_top=fields.num_top,
        prompt_logprobs=fields.prompt_logprobs,
        include_token_ids=fields.include_token_ids,
        as_token_ids=fields.return_tokens_as_token_ids,
        echoed=last.text if fields.echo and last.role == "assistant" else "",
    )


class ChatCompletion:
    """One request to be answered, whole or in pieces."""

    def __init__(self, services: Services, call: Call, fields: ChatCompletionFields) -> None:
        self._services = services
        self._call = call
        self._command = to_command(fields, call, services.config.totalgpt)
        self._form = to_format(fields)
        self._options = fields.stream_options

    async def answer(self) -> bytes:
        with naming_messages():
            await check_logprob_bound(self._command, self._call.model.base.id, self._services.graph.tokenizer)
            async with self._services.generation.answering(self._command) as [answer]:
                if self._form.num_top is None and self._form.prompt_logprobs is None:
                    return self._render(answer)
                # Log-probabilities can take a second to write; the event loop has others to serve.
                return await asyncio.to_thread(self._render, answer)

    def _render(self, answer: PromptAnswer) -> bytes:
        form = self._form
        positions = answer.result.prompt_logprobs
        extras: dict[str, Any] = {"prompt_logprobs": None}
        if form.prompt_logprobs is not None and positions is not None:
            extras["prompt_logprobs"] = prompt_logprobs(positions, form.prompt_logprobs)
        if form.include_token_ids:
            extras["prompt_token_ids"] = list(answer.prompt_token_ids)
        envelope = make_envelope(self._call, prefix="chatcmpl", object_name="chat.completion")
        choices = [whole_choice(sequence, form) for sequence in answer.result.sequences]
        return to_json(envelope.around(choices, usage=usage_object(answer.result.usage), **extras))

    async def events(self) -> AsyncGenerator[bytes, None]:
        envelope = make_envelope(self._call, prefix="chatcmpl", object_name="chat.completion.chunk")
        stream = ChatStream(envelope, self._form, self._options)
        with naming_messages():
            await check_logprob_bound(self._command, self._call.model.base.id, self._services.graph.tokenizer)
            async with aclosing(self._services.generation.stream(self._command)) as items:
                async for item in items:
                    for chunk in stream.write(item):
                        yield sse.event(chunk)
        if (usage := stream.write_usage()) is not None:
            yield sse.event(usage)
        yield sse.DONE


def add_routes(routes: APIRouter, services: Services) -> None:
    @once(services)
    async def create_chat_completion(request: Request) -> Response:
        """Answers messages, which go through the model's chat template."""
        call = await read_call(request, services, request.path_params.get("model"))
        fields = parse_chat(call.body, services.config.totalgpt)
        completion = ChatCompletion(services, call, fields)
        return await respond(request, completion, services.config.http, stream=fields.stream)

    document = documented(
        "Create a chat completion",
        body=ChatCompletionFields,
        requests=CHAT_REQUESTS,
        answer=CHAT_ANSWER,
        events=CHAT_EVENTS,
    )
    routes.add_api_route("/v1/chat/completions", create_chat_completion, methods=["POST"], **document)
    for path in (
        "/chat/completions",
        "/engines/{model:path}/chat/completions",
        "/openai/deployments/{model:path}/chat/completions",
    ):
        routes.add_api_route(path, create_chat_completion, methods=["POST"], include_in_schema=False)
