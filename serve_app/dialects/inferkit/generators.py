"""Custom generators: made from documents, deployed, undeployed. `GET /v1/models/{id}` shows one: see TotalGPT's models.

InferKit made them on its web pages only; `POST /v1/models` is an addition. They are the fine-tuned models of all APIs.
"""

import asyncio
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from deployments.errors import Conflict, InvalidParameter, InvalidRequest, ModelNotFound, NotFound
from deployments.training import TrainingParams
from serve_app.dialects.inferkit.camel_model import CamelModel
from serve_app.http.authentication import authenticate
from serve_app.http.documented import documented
from serve_app.http.idempotency import REPLAYED_HEADER, Created, create_once, idempotency_key, idempotent
from serve_app.http.json_text import parse_object
from serve_app.http.large_bodies import large_body, max_document_bytes
from serve_app.http.request_body import read_bounded
from serve_app.http.resources import json_answer
from serve_app.http.times import from_iso, to_iso
from serve_app.http.wire_model import parse
from serve_app.services import Services
from serve_app.use_cases.callers import Caller, Dialect, Scope
from serve_app.use_cases.document_training import AUTO_LEARNING_RATE
from serve_app.use_cases.fine_tuning import FineTuneCommand
from serve_app.use_cases.models import ServedModel

_DOCUMENTS = "documents"


class NewGenerator(CamelModel):
    """Exactly one of `documents` and `file`."""

    name: str = Field(min_length=1, max_length=200, description="What the generator is called beside its id.")
    documents: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None, description="The texts to learn from, 50 kB to 20 MB of them unless configured otherwise."
    )
    file: str | None = Field(None, description="Instead of documents: the id of an uploaded file.")


class Deployment(CamelModel):
    auto_undeploy_at: str | None = Field(
        None, description="A time such as 2026-12-31T00:00:00Z, from which on the generator is undeployed."
    )


_EXAMPLE = {
    "id": "ft_model_4fk2x90qh7mzt1ab",
    "name": "sea-stories",
    "deploymentStage": "Deployed",
    "undeployAt": None,
}
_REQUESTS: dict[str, dict[str, Any]] = {
    "file": {"name": "sea-stories", "file": "file-7h3k9q2x5m8b1c4v6n0z2tay"},
    "documents": {"name": "sea-stories", "documents": ["Once upon a time there was a fox.", "It lived by the sea."]},
}


def generator_object(model_id: str, name: str, stage: str, undeploy_at: float | None = None) -> dict[str, Any]:
    return {"id": model_id, "name": name, "deploymentStage": stage, "undeployAt": to_iso(undeploy_at)}


def add_routes(routes: APIRouter, services: Services) -> None:
    http, config, tuned_models = services.config.http, services.config.fine_tuning, services.tuned_models

    async def identify(request: Request) -> Caller:
        return await authenticate(request, services, Dialect.INFERKIT, scope=Scope.FINE_TUNE, allow_raw_key=True)

    def read(body: bytes) -> NewGenerator:
        """Megabytes take their time; to be called in a thread."""
        data = parse_object(body, max_depth=http.max_json_depth, allow_trailing_commas=True)
        fields = parse(NewGenerator, data)
        if (fields.documents is None) is (fields.file is None):
            raise InvalidParameter("documents or file must be given, and not both", _DOCUMENTS)
        if fields.documents is not None:
            services.document_training.check(fields.documents, _DOCUMENTS, min_bytes=config.min_generator_bytes)
        return fields

    async def create_generator(request: Request) -> Response:
        """Makes a generator that learns from documents. It is `Deploying` while it is trained, and then deployed."""
        caller = await identify(request)
        await services.admission.count(caller)
        key = idempotency_key(request)
        async with large_body(request, services) as arriving:
            created = await make_job(arriving, caller, key)
        job = await services.fine_tuning.get(caller.account, created.id)
        shown = generator_object(job.model_id, job.name, "Deploying")
        response = json_answer(shown, status=201, location=f"/v1/models/{job.model_id}")
        if created.is_replayed:
            response.headers[REPLAYED_HEADER] = "true"
        return response

    async def make_job(request: Request, caller: Caller, key: str | None) -> Created:
        body = await read_bounded(request, max_document_bytes(services.config))
        fields = await services.idempotency.to_the_end(asyncio.to_thread(read, body))
        base = services.models.default(caller.principal)

        async def create(once: bytes | None) -> str:
            command = FineTuneCommand(
                account=caller.account,
                key_id=caller.principal.key_id,
                dialect=caller.dialect.value,
                base_model=base.id,
                training_file="",
                params=TrainingParams(learning_rate=AUTO_LEARNING_RATE),
                name=fields.name,
                once=once,
            )
            if fields.documents is not None:
                command = replace(command, data_param=_DOCUMENTS)
                job = await services.document_training.create(command, fields.documents, filename="documents.jsonl")
                return job.id
            await check_file(caller.account, fields.file or "")
            command = replace(command, data_param="file", training_file=fields.file or "")
            return (await services.fine_tuning.create(command)).id

        return await create_once(request, services, caller, create, key=key, body=body)

    async def check_file(account: str, file_id: str) -> None:
        """Raises InvalidParameter."""
        try:
            file = await services.files.get(account, file_id)
        except NotFound:
            raise InvalidParameter(f"there is no file {file_id!r}", "file") from None
        if file.bytes < config.min_generator_bytes:
            raise InvalidParameter(f"the file must have at least {config.min_generator_bytes} bytes", "file")

    async def asked(request: Request, caller: Caller) -> ServedModel:
        """The model of the path, which has been trained. Raises ModelNotFound, Conflict."""
        name = request.path_params["id"]
        try:
            return await services.models.resolve(caller.principal, name)
        except ModelNotFound:
            await services.models.coming(caller.principal, name)
            raise Conflict(f"the generator {name!r} is still being trained; it is deployed by itself") from None

    once = idempotent(services, identify, to_the_end=True)

    @once
    async def deploy(request: Request) -> Response:
        """Puts a generator into service, for ever or until a time. Configured models always are."""
        caller = await identify(request)
        served = await asked(request, caller)
        body = await read_bounded(request, http.max_body_bytes)
        data = parse_object(body or b"{}", max_depth=http.max_json_depth, allow_trailing_commas=True)
        undeploy_at = from_iso(parse(Deployment, data).auto_undeploy_at, "autoUndeployAt")
        await services.admission.count(caller)
        if served.tuned is None:
            if undeploy_at is not None:
                raise InvalidParameter("a configured model is always deployed", "autoUndeployAt")
            return json_answer(generator_object(served.id, served.id, "Deployed"))
        model = await tuned_models.deploy(caller.account, served.id, undeploy_at=undeploy_at)
        return json_answer(generator_object(model.id, model.name or model.id, "Deployed", model.undeploy_at))

    @once
    async def undeploy(request: Request) -> Response:
        """Takes a generator out of service; until it is deployed again, requests to it are refused."""
        caller = await identify(request)
        served = await asked(request, caller)
        await services.admission.count(caller)
        if served.tuned is None:
            raise InvalidRequest("a configured model is always deployed")
        model = await tuned_models.undeploy(caller.account, served.id)
        return json_answer(generator_object(model.id, model.name or model.id, "Undeployed"))

    created = documented(
        "Create a generator",
        answer={**_EXAMPLE, "deploymentStage": "Deploying"},
        created=True,
        body=NewGenerator,
        requests=_REQUESTS,
    )
    deployed = documented(
        "Deploy a generator",
        answer=_EXAMPLE,
        repeatable=True,
        body=Deployment,
        requests={"for ever": {}, "until": {"autoUndeployAt": "2027-01-31T00:00:00Z"}},
    )
    undeployed = documented(
        "Undeploy a generator", answer={**_EXAMPLE, "deploymentStage": "Undeployed"}, repeatable=True
    )
    routes.add_api_route("/v1/models", create_generator, methods=["POST"], **created)
    routes.add_api_route("/v1/models/{id:path}/deploy", deploy, methods=["POST"], **deployed)
    routes.add_api_route("/v1/models/{id:path}/undeploy", undeploy, methods=["POST"], **undeployed)
