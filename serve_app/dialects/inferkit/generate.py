"""`POST /v1/models/{id}/generate`: wire models, translation and route."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from deployments.errors import MethodNotAllowed
from deployments.types import FinishReason, PromptStart, SamplingParams, TextPrompt
from serve_app.dialects.inferkit.camel_model import CamelModel
from serve_app.http.authentication import authenticate
from serve_app.http.disconnect import run_while_connected
from serve_app.http.error_response import error_as_ndjson
from serve_app.http.idempotency import idempotent
from serve_app.http.json_text import to_json
from serve_app.http.openapi import answer, billed_request, text_answer
from serve_app.http.request_body import read_json
from serve_app.http.streaming import stream_response
from serve_app.http.wire_model import parse
from serve_app.services import Services
from serve_app.use_cases.callers import Caller, Dialect
from serve_app.use_cases.generate import GenerateCommand, PromptChunk

Envelope = Literal["both", "bare", "data"]

NDJSON = "application/x-ndjson"

_MAX_TOKENS_PER_CHARACTER = 4
"""A code point is at most four bytes of UTF-8, and a token of text at least one."""

_FINAL_LINE_DELAY_S = 0.005
"""Long enough for the last line of text to leave the machine on its own: clients parse what one read gives them."""


PromptText = Annotated[str, Field(min_length=1, max_length=3000)]


class PromptBody(CamelModel):
    text: PromptText = Field(description="The text to continue; at most 3000 Unicode code points.")
    is_continuation: bool = Field(False, description="Whether the text is the end of a longer one.")


class GenerateBody(CamelModel):
    """A bare string as the prompt is an addition to the documented API.

    `keywords` is what some clients send along and the documented API does not have; it has no effect.
    """

    prompt: PromptText | PromptBody | None = Field(
        None, description="What to continue; without it the model makes up its own text."
    )
    length: int = Field(ge=10, le=1000, description="The largest number of code points to generate.")
    start_from_beginning: bool = Field(False, description="Whether the text starts at the beginning of a document.")
    stream_response: bool = Field(False, description="Whether to answer in chunks: one line of JSON each.")
    force_no_end: bool = Field(False, description="Whether to go on where the model would end the text.")
    top_p: float = Field(0.9, ge=0, le=1, description="Nucleus sampling; 0 keeps the likeliest token only.")
    temperature: float = Field(1.0, ge=0.001, le=100, description="Randomness.")
    keywords: Annotated[list[str], Field(max_length=10)] | None = Field(None, description="Without effect.")


class Chunk(CamelModel):
    text: str = Field(description="The generated text, without the prompt.")
    is_final_chunk: bool = Field(description="Always true where the answer is not streamed.")
    reached_end: bool = Field(description="Whether the text came to its end. In a stream only the final chunk has it.")


class ChunkInData(CamelModel):
    data: Chunk


class ChunkTwice(Chunk):
    data: Chunk = Field(description="The same again: where most clients look for it.")


_ANSWERS: dict[Envelope, type[CamelModel]] = {"bare": Chunk, "data": ChunkInData, "both": ChunkTwice}

_REQUEST_EXAMPLES: dict[str, dict[str, Any]] = {
    "simple": {"prompt": {"text": "Hello world!"}, "length": 500},
    "complex": {
        "prompt": {"text": "mmand below in the root directory of your project.", "isContinuation": True},
        "length": 500,
        "streamResponse": True,
        "forceNoEnd": True,
        "topP": 0.8,
        "temperature": 1.1,
    },
}


def to_command(body: GenerateBody, *, caller: Caller, model: str) -> GenerateCommand:
    max_tokens = body.length * _MAX_TOKENS_PER_CHARACTER
    return GenerateCommand(
        caller=caller,
        model=model,
        prompts=(_prompt(body),),
        sampling=SamplingParams(
            max_characters=body.length,
            min_tokens=max_tokens if body.force_no_end else 0,
            temperature=body.temperature,
            top_p=body.top_p,
        ),
        max_tokens=max_tokens,
        # Every prompt of up to 3000 code points is legal, also where the model's context is shorter.
        overflow="truncate",
    )


def _prompt(body: GenerateBody) -> TextPrompt:
    prompt = PromptBody(text=body.prompt) if isinstance(body.prompt, str) else body.prompt
    if body.start_from_beginning:
        return TextPrompt(prompt.text if prompt else "", PromptStart.DOCUMENT)
    if prompt is None:
        # An arbitrary part of a document: what follows a paragraph that nobody sees.
        return TextPrompt("\n\n", PromptStart.PLAIN)
    return TextPrompt(prompt.text, PromptStart.PLAIN if prompt.is_continuation else PromptStart.DEFAULT)


@dataclass(frozen=True, slots=True)
class ChunkEncoder:
    """Spells chunks as JSON, in the configured envelope; only a final one says whether the text came to its end."""

    envelope: Envelope
    force_no_end: bool

    def final(self, text: str, finish_reason: FinishReason | None) -> bytes:
        reached_end = finish_reason is FinishReason.STOP and not self.force_no_end
        return self._encode({"text": text, "isFinalChunk": True, "reachedEnd": reached_end})

    def piece(self, text: str) -> bytes:
        return self._encode({"text": text, "isFinalChunk": False})

    def _encode(self, chunk: dict[str, Any]) -> bytes:
        if self.envelope == "bare":
            return to_json(chunk)
        return to_json({"data": chunk} if self.envelope == "data" else {**chunk, "data": chunk})


async def encode_lines(chunks: AsyncGenerator[PromptChunk, None], encoder: ChunkEncoder) -> AsyncGenerator[bytes, None]:
    """One line for each piece of text, and a last one without text: some clients drop the text of the last one."""
    finish_reason: FinishReason | None = None
    async with aclosing(chunks):
        async for item in chunks:
            finish_reason = item.chunk.finish_reason or finish_reason
            if item.chunk.text:
                yield encoder.piece(item.chunk.text) + b"\n"
    await asyncio.sleep(_FINAL_LINE_DELAY_S)
    yield encoder.final("", finish_reason) + b"\n"


def _documented_answer(envelope: Envelope) -> dict[str, Any]:
    encoder = ChunkEncoder(envelope, force_no_end=False)
    whole = json.loads(encoder.final(" run the command below in the root directory of your", FinishReason.LENGTH))
    lines = [
        encoder.piece(" run the command below"),
        encoder.piece(" in the root directory of your"),
        encoder.final("", FinishReason.LENGTH),
    ]
    documented = answer(
        "The text in one chunk, or a line of JSON for each chunk.", _ANSWERS[envelope], {"documented": whole}
    )
    streamed = text_answer(NDJSON, "", "".join(f"{line.decode()}\n" for line in lines))
    return {**documented, "content": {**documented["content"], **streamed["content"]}}


def add_routes(routes: APIRouter, services: Services) -> None:
    http = services.config.http
    envelope = services.config.inferkit.envelope

    async def identify(request: Request) -> Caller:
        return await authenticate(request, services, Dialect.INFERKIT, allow_raw_key=True)

    @routes.post(
        "/v1/models/{id:path}/generate",
        summary="Generate text",
        openapi_extra=billed_request(GenerateBody, _REQUEST_EXAMPLES),
        responses={200: _documented_answer(envelope)},
    )
    @idempotent(services, identify)
    async def generate(request: Request) -> Response:
        """Continues a prompt, or makes up a text. The body is read as JSON whatever its content type says."""
        caller = await identify(request)
        model = await services.models.resolve(caller.principal, request.path_params["id"])
        data = await read_json(
            request,
            max_bytes=http.max_body_bytes,
            max_depth=http.max_json_depth,
            require_json_content_type=False,
            # The documentation's own example has one.
            allow_trailing_commas=True,
        )
        body = parse(GenerateBody, data)
        command = to_command(body, caller=caller, model=model.id)
        encoder = ChunkEncoder(envelope, body.force_no_end)
        if body.stream_response:
            return await stream_response(
                request,
                encode_lines(services.generation.stream(command), encoder),
                media_type=NDJSON,
                error_framing=error_as_ndjson,
                deadline_s=http.request_deadline_s,
                # Not an empty line: some clients parse whatever one read gives them.
                keep_alive=encoder.piece("") + b"\n",
                keep_alive_s=http.stream_keep_alive_s,
            )
        answers = await run_while_connected(
            request, services.generation.generate(command), deadline_s=http.request_deadline_s
        )
        sequence = answers[0].result.sequences[0]
        content = encoder.final(sequence.text, sequence.finish_reason)
        return Response(content, media_type="application/json")

    @routes.get("/v1/models/{id:path}/generate", include_in_schema=False)
    async def refuse_get(request: Request) -> Response:
        """Without it, `GET /v1/models/{id}` would look for a model called `.../generate`."""
        raise MethodNotAllowed(f"{request.url.path} does not take GET, only POST", "POST")
