"""`POST /v1/aitextgen/generate`: wire models, translation and route."""

import time
from typing import Any

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from deployments.types import SamplingParams, TextPrompt
from serve_app.http.authentication import authenticate
from serve_app.http.disconnect import run_while_connected
from serve_app.http.idempotency import idempotent
from serve_app.http.json_text import to_json
from serve_app.http.openapi import answer, billed_request
from serve_app.http.request_body import read_json
from serve_app.http.wire_model import WireModel, parse
from serve_app.services import Services
from serve_app.use_cases.callers import Caller, Dialect
from serve_app.use_cases.generate import GenerateCommand


class GenerateBody(WireModel):
    """`model`, `seed` and `return_full_text` are additions to the documented API."""

    prompt: str = Field(min_length=1, description="The text to continue.")
    max_length: int = Field(
        50, ge=1, description="The largest number of tokens to generate; the prompt does not count."
    )
    temperature: float = Field(0.7, ge=0, le=1, description="Randomness; 0 always takes the likeliest token.")
    top_p: float = Field(0.9, ge=0, le=1, description="Nucleus sampling; 0 keeps the likeliest token only.")
    model: str | None = Field(None, description="A model id; the default model where it is left out.")
    seed: int | None = Field(
        None, ge=0, lt=2**63, description="The same request with the same seed gives the same text."
    )
    return_full_text: bool = Field(False, description="Whether `generated_text` begins with the prompt.")


class GenerateAnswer(WireModel):
    generated_text: str = Field(description="The continuation of the prompt.")
    tokens_generated: int = Field(description="At most `max_length`.")
    generation_time: float = Field(description="Seconds.")


_REQUEST_EXAMPLES = {
    "documented": {"prompt": "Once upon a time", "max_length": 100, "temperature": 0.8},
    "repeatable": {"prompt": "Once upon a time", "seed": 7, "return_full_text": True},
}
_ANSWER_EXAMPLES = {
    "documented": {
        "generated_text": ", there lived a princess in a castle by the sea.",
        "tokens_generated": 42,
        "generation_time": 0.8765,
    }
}


def to_command(body: GenerateBody, *, caller: Caller, default_model: str) -> GenerateCommand:
    return GenerateCommand(
        caller=caller,
        model=default_model if body.model is None else body.model,
        prompts=(TextPrompt(body.prompt),),
        sampling=SamplingParams(temperature=body.temperature, top_p=body.top_p),
        max_tokens=body.max_length,
        seed=body.seed,
    )


def add_routes(routes: APIRouter, services: Services) -> None:
    http = services.config.http

    async def identify(request: Request) -> Caller:
        return await authenticate(request, services, Dialect.AITEXTGEN)

    @routes.post(
        "/v1/aitextgen/generate",
        summary="Generate text",
        openapi_extra=billed_request(GenerateBody, _REQUEST_EXAMPLES),
        responses={200: answer("The generated text.", GenerateAnswer, _ANSWER_EXAMPLES)},
    )
    @idempotent(services, identify)
    async def generate(request: Request) -> Response:
        """Continues a prompt."""
        started_at = time.perf_counter()
        caller = await identify(request)
        data = await read_json(
            request, max_bytes=http.max_body_bytes, max_depth=http.max_json_depth, require_json_content_type=True
        )
        body = parse(GenerateBody, data)
        command = to_command(
            body,
            caller=caller,
            default_model=services.models.default(caller.principal).id,
        )
        answers = await run_while_connected(
            request, services.generation.generate(command), deadline_s=http.request_deadline_s
        )
        result = answers[0].result
        text = result.sequences[0].text
        payload: dict[str, Any] = {
            "generated_text": body.prompt + text if body.return_full_text else text,
            "tokens_generated": result.usage.completion_tokens,
            "generation_time": round(time.perf_counter() - started_at, 4),
        }
        return Response(to_json(payload), media_type="application/json")
