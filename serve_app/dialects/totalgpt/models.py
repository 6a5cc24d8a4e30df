"""The list of models, and one model: an object that OpenAI's, vLLM's and InferKit's clients all understand."""

import asyncio
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from deployments.config import ModelConfig
from deployments.types import EncodeRequest
from serve_app.dialects.totalgpt.call import json_answer
from serve_app.dialects.totalgpt.documents import documented
from serve_app.http.authentication import authenticate
from serve_app.services import Services
from serve_app.use_cases.callers import Dialect

CREATED = 1677610602
"""The time that the API's documentation shows. A model's real age is unknown, and the value must never change."""

_EXAMPLE = {
    "id": "SmolLM2-135M-Instruct",
    "object": "model",
    "created": CREATED,
    "owned_by": "tritext",
    "root": "SmolLM2-135M-Instruct",
    "parent": None,
    "max_model_len": 8192,
    "permission": [],
    "name": "SmolLM2-135M-Instruct",
    "deploymentStage": "Deployed",
    "undeployAt": None,
}


def model_object(name: str, model: ModelConfig, context_length: int) -> dict[str, Any]:
    """`root` is the configured id where `name` is an alias; the last three fields are InferKit's."""
    return {
        "id": name,
        "object": "model",
        "created": CREATED,
        "owned_by": "tritext",
        "root": model.id,
        "parent": None,
        "max_model_len": context_length,
        "permission": [],
        "name": name,
        "deploymentStage": "Deployed",
        "undeployAt": None,
    }


def add_routes(routes: APIRouter, services: Services) -> None:
    async def context_length(model: ModelConfig) -> int:
        encoded = await services.graph.tokenizer.encode(EncodeRequest(model.id, ()))
        return encoded.context_length

    async def list_models(request: Request) -> Response:
        """Every id and every alias: clients look here for the name that they are going to use."""
        caller = await authenticate(request, services, Dialect.TOTALGPT)
        models = services.models.of(caller.principal.models).models
        lengths = await asyncio.gather(*map(context_length, models))
        data = [
            model_object(name, model, length)
            for model, length in zip(models, lengths, strict=True)
            for name in (model.id, *model.aliases)
        ]
        return json_answer({"object": "list", "data": data})

    async def retrieve_model(request: Request) -> Response:
        """The model with this id or alias, which may contain slashes."""
        caller = await authenticate(request, services, Dialect.TOTALGPT)
        name = request.path_params["id"]
        model = services.models.of(caller.principal.models).resolve(name)
        return json_answer(model_object(name, model, await context_length(model)))

    listed = documented("List the models", answer={"object": "list", "data": [_EXAMPLE]})
    routes.add_api_route("/v1/models", list_models, methods=["GET"], **listed)
    routes.add_api_route("/models", list_models, methods=["GET"], include_in_schema=False)
    retrieved = documented("Retrieve a model", answer=_EXAMPLE)
    routes.add_api_route("/v1/models/{id:path}", retrieve_model, methods=["GET"], **retrieved)
    routes.add_api_route("/models/{id:path}", retrieve_model, methods=["GET"], include_in_schema=False)
