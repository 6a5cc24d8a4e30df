"""vLLM's `/tokenize` and `/detokenize`: text or messages to token ids, and back."""

from typing import Any

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from deployments.errors import InvalidParameter
from deployments.types import EncodeRequest, Prompt, PromptStart, TextPrompt
from serve_app.dialects.totalgpt.call import Call, read_call
from serve_app.dialects.totalgpt.documents import documented
from serve_app.dialects.totalgpt.fields import NullableFields, TokenId
from serve_app.dialects.totalgpt.prompts import ChatFields, Message, naming_messages, to_chat_prompt
from serve_app.dialects.totalgpt.unsupported import TOKENIZING, refuse_unsupported
from serve_app.http.disconnect import run_while_connected
from serve_app.http.resources import json_answer
from serve_app.http.wire_model import parse
from serve_app.services import Services

_TOKENIZE_EXAMPLES: dict[str, dict[str, Any]] = {
    "text": {"model": "SmolLM2-135M-Instruct", "prompt": "Hello world", "return_token_strs": True}
}
_TOKENIZE_ANSWER = {"count": 2, "max_model_len": 8192, "tokens": [19556, 905], "token_strs": ["Hello", " world"]}
_DETOKENIZE_EXAMPLES: dict[str, dict[str, Any]] = {"tokens": {"model": "SmolLM2-135M-Instruct", "tokens": [19556, 905]}}


class TokenizeFields(NullableFields):
    model: str | None = Field(None, description="A model id; the default model where it is left out.")
    prompt: str | None = None
    messages: list[Message] | None = Field(None, description="Instead of a prompt: goes through the chat template.")
    add_special_tokens: bool | None = Field(None, description="Of a prompt; true where it is left out.")
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    return_token_strs: bool = Field(False, description="Whether to answer the text of each token too.")


class DetokenizeFields(NullableFields):
    model: str | None = Field(None, description="A model id; the default model where it is left out.")
    tokens: list[TokenId]


def to_tokenized(fields: TokenizeFields, call: Call) -> Prompt:
    """Raises InvalidParameter unless there is exactly one of a prompt and messages."""
    if fields.prompt is not None and fields.messages is not None:
        raise InvalidParameter("prompt cannot be combined with messages", "prompt")
    if fields.messages is not None:
        if fields.add_special_tokens:
            raise InvalidParameter(
                "add_special_tokens must be false for messages: the chat template adds them", "add_special_tokens"
            )
        return to_chat_prompt(parse(ChatFields, {**call.body}))
    if fields.prompt is not None:
        start = PromptStart.PLAIN if fields.add_special_tokens is False else PromptStart.DEFAULT
        return TextPrompt(fields.prompt, start)
    raise InvalidParameter("prompt or messages must be given", "prompt")


def add_routes(routes: APIRouter, services: Services) -> None:
    tokenizer = services.graph.tokenizer
    deadline_s = services.config.http.request_deadline_s

    async def tokenize(request: Request) -> Response:
        """The token ids of a text, or of messages put through the model's chat template."""
        call = await read_call(request, services, model_is_optional=True)
        refuse_unsupported(call.body, TOKENIZING)
        fields = parse(TokenizeFields, {**call.body})
        prompt = to_tokenized(fields, call)
        await services.admission.count(call.caller)
        with naming_messages(is_chat=fields.messages is not None):
            answer = await run_while_connected(
                request, tokenized(call.model.base.id, prompt, fields.return_token_strs), deadline_s=deadline_s
            )
        return json_answer(answer)

    async def tokenized(model_id: str, prompt: Prompt, with_texts: bool) -> dict[str, Any]:
        encoded = await tokenizer.encode(EncodeRequest(model_id, (prompt,)))
        token_ids = encoded.prompt_token_ids[0]
        texts = await tokenizer.token_texts(model_id, token_ids) if with_texts else None
        return {
            "count": len(token_ids),
            "max_model_len": encoded.context_length,
            "tokens": token_ids,
            "token_strs": texts,
        }

    async def detokenize(request: Request) -> Response:
        """The text of token ids, special tokens included."""
        call = await read_call(request, services, model_is_optional=True)
        fields = parse(DetokenizeFields, {**call.body})
        await services.admission.count(call.caller)
        text = await run_while_connected(
            request, tokenizer.decode(call.model.base.id, tuple(fields.tokens)), deadline_s=deadline_s
        )
        return json_answer({"prompt": text})

    document = documented("Tokenize", body=TokenizeFields, requests=_TOKENIZE_EXAMPLES, answer=_TOKENIZE_ANSWER)
    routes.add_api_route("/tokenize", tokenize, methods=["POST"], **document)
    routes.add_api_route("/v1/tokenize", tokenize, methods=["POST"], include_in_schema=False)
    document = documented(
        "Detokenize", body=DetokenizeFields, requests=_DETOKENIZE_EXAMPLES, answer={"prompt": "Hello world"}
    )
    routes.add_api_route("/detokenize", detokenize, methods=["POST"], **document)
    routes.add_api_route("/v1/detokenize", detokenize, methods=["POST"], include_in_schema=False)
