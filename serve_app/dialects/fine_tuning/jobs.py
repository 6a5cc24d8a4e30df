"""`/v1/fine_tuning/jobs`: OpenAI's fine-tuning jobs."""

import re
from collections.abc import Awaitable, Callable, Sequence

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from deployments.errors import InvalidParameter
from serve_app.dialects.fine_tuning import documents
from serve_app.dialects.fine_tuning.call import fine_tuner, page_object
from serve_app.dialects.fine_tuning.wire import (
    JobBody,
    check_metadata,
    checkpoint_manifest,
    checkpoint_object,
    event_number,
    event_object,
    hyperparameters_of,
    job_object,
    naming_fields,
    to_params,
)
from serve_app.http.idempotency import REPLAYED_HEADER, create_once, idempotency_key, idempotent
from serve_app.http.json_text import parse_object
from serve_app.http.query import QueryModel, parse_pairs, parse_query
from serve_app.http.request_body import check_content_type, read_bounded
from serve_app.http.resources import json_answer, path_id
from serve_app.http.wire_model import parse
from serve_app.jobs.job import Job
from serve_app.services import Services
from serve_app.use_cases.callers import Caller
from serve_app.use_cases.fine_tuning import FineTuneCommand

PATH = "/v1/fine_tuning/jobs"

_MAX_PAGE = 100
_METADATA = re.compile(r"metadata\[(.*)\]", re.DOTALL)


class JobsQuery(QueryModel):
    limit: int = Field(20, ge=1, le=_MAX_PAGE, description="The largest number of items to answer.")
    after: str | None = Field(None, description="The id of the last item of the page before.")


class CheckpointsQuery(JobsQuery):
    limit: int = Field(10, ge=1, le=_MAX_PAGE, description="The largest number of items to answer.")


def add_routes(routes: APIRouter, services: Services) -> None:
    http, fine_tuning = services.config.http, services.fine_tuning

    async def identify(request: Request) -> Caller:
        return await fine_tuner(request, services)

    async def create_job(request: Request) -> Response:
        """Trains a model on an uploaded file. The answer comes at once; the job tells when there is a model."""
        caller = await identify(request)
        key = idempotency_key(request)
        check_content_type(request)
        data = await read_bounded(request, http.max_body_bytes)
        body = parse(JobBody, parse_object(data, max_depth=http.max_json_depth))
        metadata = check_metadata(body.metadata)
        hyperparameters, place = hyperparameters_of(body)
        base = await services.models.trainable(caller.principal, body.model)
        await services.admission.count(caller)

        async def create(once: bytes | None) -> str:
            command = FineTuneCommand(
                account=caller.account,
                key_id=caller.principal.key_id,
                dialect=caller.dialect.value,
                base_model=base.id,
                training_file=body.training_file,
                validation_file=body.validation_file,
                params=to_params(body, hyperparameters),
                name=body.suffix or "",
                metadata=metadata,
                once=once,
            )
            try:
                return (await fine_tuning.create(command)).id
            except InvalidParameter as error:
                raise naming_fields(error, place) from None

        created = await create_once(request, services, caller, create, key=key, body=data)
        response = json_answer(job_object(await fine_tuning.get(caller.account, created.id)))
        if created.is_replayed:
            response.headers[REPLAYED_HEADER] = "true"
        return response

    async def list_jobs(request: Request) -> Response:
        """The account's fine-tuning jobs, those of the other APIs too, the newest first. `metadata[key]=value` picks
        those with this metadata."""
        caller = await identify(request)
        metadata, others = _metadata_filter(request.query_params.multi_items())
        query = parse_pairs(JobsQuery, others)
        jobs = await fine_tuning.list(caller.account, after=query.after, limit=query.limit + 1, metadata=metadata)
        return json_answer(page_object(jobs, query.limit, job_object))

    async def retrieve_job(request: Request) -> Response:
        """One fine-tuning job."""
        caller = await identify(request)
        return json_answer(job_object(await fine_tuning.get(caller.account, path_id(request, "job"))))

    async def list_events(request: Request) -> Response:
        """What happened to a job, the newest first."""
        caller = await identify(request)
        job_id = path_id(request, "job")
        query = parse_query(JobsQuery, request)
        after = event_number(query.after)
        events = await fine_tuning.events(caller.account, job_id, after=after, limit=query.limit + 1)
        return json_answer(page_object(events, query.limit, event_object))

    async def list_checkpoints(request: Request) -> Response:
        """From where a job can go on if its worker is lost, the newest first. They cannot be used as models."""
        caller = await identify(request)
        job = await fine_tuning.get(caller.account, path_id(request, "job"))
        query = parse_query(CheckpointsQuery, request)
        after = checkpoint_manifest(query.after)
        checkpoints = await fine_tuning.checkpoints(caller.account, job.id, after=after, limit=query.limit + 1)
        return json_answer(page_object(checkpoints, query.limit, lambda found: checkpoint_object(found, job)))

    async def changed(request: Request, change: Callable[[str, str], Awaitable[Job]]) -> Response:
        caller = await identify(request)
        job_id = path_id(request, "job")
        await services.admission.count(caller)
        return json_answer(job_object(await change(caller.account, job_id)))

    once = idempotent(services, identify, to_the_end=True)

    @once
    async def cancel_job(request: Request) -> Response:
        """Ends a job that has not ended."""
        return await changed(request, fine_tuning.cancel)

    @once
    async def pause_job(request: Request) -> Response:
        """Lets a job rest; what came after its last checkpoint is trained again."""
        return await changed(request, fine_tuning.pause)

    @once
    async def resume_job(request: Request) -> Response:
        """Lets a paused job go on."""
        return await changed(request, fine_tuning.resume)

    routes.add_api_route(PATH, create_job, methods=["POST"], **documents.CREATE_JOB)
    routes.add_api_route(PATH, list_jobs, methods=["GET"], **documents.list_jobs(JobsQuery))
    routes.add_api_route(f"{PATH}/{{job}}", retrieve_job, methods=["GET"], **documents.RETRIEVE_JOB)
    routes.add_api_route(f"{PATH}/{{job}}/events", list_events, methods=["GET"], **documents.list_events(JobsQuery))
    routes.add_api_route(
        f"{PATH}/{{job}}/checkpoints", list_checkpoints, methods=["GET"], **documents.checkpoints(CheckpointsQuery)
    )
    for name, endpoint in (("cancel", cancel_job), ("pause", pause_job), ("resume", resume_job)):
        routes.add_api_route(f"{PATH}/{{job}}/{name}", endpoint, methods=["POST"], **documents.change(name))


def _metadata_filter(pairs: Sequence[tuple[str, str]]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """The metadata that jobs must have, and the other parameters. Raises InvalidParameter."""
    wanted: dict[str, str] = {}
    others: list[tuple[str, str]] = []
    for name, value in pairs:
        match = _METADATA.fullmatch(name)
        if match is None:
            others.append((name, value))
        elif match[1] in wanted:
            raise InvalidParameter(f"{name} stands twice", name)
        else:
            wanted[match[1]] = value
    return check_metadata(wanted), others
