"""The list of models, and one model: an object that OpenAI's, vLLM's and InferKit's clients all understand."""

import asyncio
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from deployments.config import ModelConfig
from deployments.errors import ModelNotFound, PermissionDenied
from deployments.types import EncodeRequest
from serve_app.dialects.totalgpt.documents import documented
from serve_app.http.authentication import authenticate
from serve_app.http.resources import json_answer
from serve_app.http.times import to_iso
from serve_app.jobs.job import TunedModel
from serve_app.services import Services
from serve_app.use_cases.callers import Dialect, Principal, Scope
from serve_app.use_cases.tuned_models import ComingModel

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
_TUNED_EXAMPLE = {
    **_EXAMPLE,
    "id": "ft_model_4fk2x90qh7mzt1ab",
    "created": 1790000000,
    "owned_by": "acme",
    "parent": "SmolLM2-135M-Instruct",
    "name": "support-answers",
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


def tuned_object(
    model: TunedModel | ComingModel, account: str, context_length: int, *, stage: str, undeploy_at: float | None = None
) -> dict[str, Any]:
    """The same for a fine-tuned model, whose `root` and `parent` are the model that it is made from."""
    return {
        "id": model.id,
        "object": "model",
        "created": int(model.created_at),
        "owned_by": account,
        "root": model.base_model,
        "parent": model.base_model,
        "max_model_len": context_length,
        "permission": [],
        "name": model.name or model.id,
        "deploymentStage": stage,
        "undeployAt": to_iso(undeploy_at),
    }


class ModelObjects:
    """The objects of the models that a caller may see."""

    def __init__(self, services: Services) -> None:
        self._models = services.models
        self._tuned_models = services.tuned_models
        self._tokenizer = services.graph.tokenizer

    async def all(self, principal: Principal) -> list[dict[str, Any]]:
        """Every id and every alias, then what the account has trained."""
        models = self._models.catalog.of(principal.models).models
        tuned = await self._models.tuned(principal)
        bases = {model.id: model for model in (*models, *(base for _, base in tuned))}
        lengths = dict(zip(bases, await asyncio.gather(*map(self._context_length, bases.values())), strict=True))
        named = [
            model_object(name, model, lengths[model.id]) for model in models for name in (model.id, *model.aliases)
        ]
        return named + [self._tuned_object(model, principal, lengths[base.id]) for model, base in tuned]

    async def one(self, principal: Principal, name: str) -> dict[str, Any]:
        """Raises ModelNotFound."""
        try:
            served = await self._models.resolve(principal, name)
        except ModelNotFound:
            coming, base = await self._models.coming(principal, name)
            return tuned_object(coming, principal.account, await self._context_length(base), stage="Deploying")
        context_length = await self._context_length(served.base)
        if served.tuned is None:
            return model_object(name, served.base, context_length)
        # Not from the cache: who has just deployed a model, by whichever process, sees it deployed.
        return self._tuned_object(await self._tuned_models.get(principal.account, name), principal, context_length)

    def _tuned_object(self, model: TunedModel, principal: Principal, context_length: int) -> dict[str, Any]:
        is_deployed = self._tuned_models.is_deployed(model)
        stage, undeploy_at = ("Deployed", model.undeploy_at) if is_deployed else ("Undeployed", None)
        return tuned_object(model, principal.account, context_length, stage=stage, undeploy_at=undeploy_at)

    async def _context_length(self, model: ModelConfig) -> int:
        return (await self._tokenizer.encode(EncodeRequest(model.id, ()))).context_length


def add_routes(routes: APIRouter, services: Services) -> None:
    objects = ModelObjects(services)

    async def list_models(request: Request) -> Response:
        """Every id and every alias, then the account's fine-tuned models: clients look here for the name to use."""
        caller = await authenticate(request, services, Dialect.TOTALGPT)
        return json_answer({"object": "list", "data": await objects.all(caller.principal)})

    async def retrieve_model(request: Request) -> Response:
        """The model with this id or alias, which may contain slashes. One that is still in training is `Deploying`."""
        caller = await authenticate(request, services, Dialect.TOTALGPT)
        return json_answer(await objects.one(caller.principal, request.path_params["id"]))

    async def delete_model(request: Request) -> Response:
        """Ends a fine-tuned model of the account for good. Configured models cannot be deleted."""
        caller = await authenticate(request, services, Dialect.TOTALGPT, scope=Scope.FINE_TUNE)
        principal, name = caller.principal, request.path_params["id"]
        if services.models.catalog.of(principal.models).find(name) is not None:
            raise PermissionDenied("a configured model cannot be deleted")
        model = await services.models.own(principal, name)
        await services.tuned_models.delete(caller.account, model.id)
        return json_answer({"id": model.id, "object": "model", "deleted": True})

    listed = documented("List the models", answer={"object": "list", "data": [_EXAMPLE, _TUNED_EXAMPLE]})
    routes.add_api_route("/v1/models", list_models, methods=["GET"], **listed)
    routes.add_api_route("/models", list_models, methods=["GET"], include_in_schema=False)
    retrieved = documented("Retrieve a model", answer=_EXAMPLE)
    routes.add_api_route("/v1/models/{id:path}", retrieve_model, methods=["GET"], **retrieved)
    routes.add_api_route("/models/{id:path}", retrieve_model, methods=["GET"], include_in_schema=False)
    deleted = documented(
        "Delete a fine-tuned model", answer={"id": _TUNED_EXAMPLE["id"], "object": "model", "deleted": True}
    )
    routes.add_api_route("/v1/models/{id:path}", delete_model, methods=["DELETE"], **deleted)
    routes.add_api_route("/models/{id:path}", delete_model, methods=["DELETE"], include_in_schema=False)
