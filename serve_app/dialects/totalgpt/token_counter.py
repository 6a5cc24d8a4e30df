"""The token counter: how many tokens a prompt or messages have, as the usage of an answer would count them."""

from typing import Any

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from deployments.errors import InvalidParameter
from deployments.types import EncodeRequest, Prompt
from serve_app.config import TotalGPTConfig
from serve_app.dialects.totalgpt.call import Call, read_call
from serve_app.dialects.totalgpt.documents import documented
from serve_app.dialects.totalgpt.fields import NullableFields
from serve_app.dialects.totalgpt.prompts import (
    PROMPT_SCHEMA,
    ChatFields,
    Message,
    naming_messages,
    to_chat_prompt,
    to_prompts,
)
from serve_app.dialects.totalgpt.unsupported import COUNTING, refuse_unsupported
from serve_app.http.disconnect import run_while_connected
from serve_app.http.resources import json_answer
from serve_app.http.wire_model import parse
from serve_app.services import Services

_REQUEST_EXAMPLES: dict[str, dict[str, Any]] = {
    "documented": {"model": "SmolLM2-135M-Instruct", "prompt": "Your prompt"},
    "messages": {"model": "SmolLM2-135M-Instruct", "messages": [{"role": "user", "content": "Hello!"}]},
}
_ANSWER_EXAMPLE = {
    "total_tokens": 22,
    "request_model": "SmolLM2-135M-Instruct",
    "model_used": "Tritext/SmolLM2-135M-Instruct",
    "tokenizer_type": "huggingface_tokenizer",
}


class TokenCounterFields(NullableFields):
    model: str
    prompt: Any = Field(None, json_schema_extra=PROMPT_SCHEMA)
    messages: list[Message] | None = Field(None, description="Counted through the model's chat template.")


def to_counted(call: Call, config: TotalGPTConfig) -> tuple[Prompt, ...]:
    """What to count. Raises InvalidParameter unless there is exactly one of a prompt and messages."""
    refuse_unsupported(call.body, COUNTING)
    fields = parse(TokenCounterFields, {**call.body})
    if fields.prompt is not None and fields.messages is not None:
        raise InvalidParameter("prompt cannot be combined with messages", "prompt")
    if fields.messages is not None:
        return (to_chat_prompt(parse(ChatFields, {**call.body})),)
    if fields.prompt is not None:
        return to_prompts(fields.prompt, add_special_tokens=True, max_prompts=config.max_prompts)
    raise InvalidParameter("prompt or messages must be given", "prompt")


def add_routes(routes: APIRouter, services: Services) -> None:
    async def count_tokens(request: Request) -> Response:
        """Counts what `usage.prompt_tokens` of an answer to the same prompt, or the same messages, would say."""
        call = await read_call(request, services)
        encode = EncodeRequest(call.model.base.id, to_counted(call, services.config.totalgpt))
        await services.admission.count(call.caller)
        deadline_s = services.config.http.request_deadline_s
        with naming_messages(is_chat=call.body.get("messages") is not None):
            encoded = await run_while_connected(request, services.graph.tokenizer.encode(encode), deadline_s=deadline_s)
        return json_answer(
            {
                "total_tokens": sum(map(len, encoded.prompt_token_ids)),
                "request_model": call.model_name,
                "model_used": services.config.totalgpt.model_prefix + call.model.id,
                "tokenizer_type": "huggingface_tokenizer",
            }
        )

    document = documented("Count tokens", body=TokenCounterFields, requests=_REQUEST_EXAMPLES, answer=_ANSWER_EXAMPLE)
    routes.add_api_route("/utils/token_counter", count_tokens, methods=["POST"], **document)
    routes.add_api_route("/v1/utils/token_counter", count_tokens, methods=["POST"], include_in_schema=False)
