"""`POST /v1/aitextgen/finetune`, which waits for the end of the training, and the jobs that it makes."""

import asyncio

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from serve_app.config import GRACE_S
from serve_app.dialects.aitextgen import finetune_documents as documents
from serve_app.dialects.aitextgen.finetune_wire import (
    DATA,
    PATH,
    FineTuneBody,
    accepted_object,
    event_object,
    failure_of,
    job_object,
    retry_after_s,
    success_object,
    to_params,
)
from serve_app.http import prefer
from serve_app.http.authentication import authenticate
from serve_app.http.disconnect import run_while_connected
from serve_app.http.idempotency import REPLAYED_HEADER, Created, create_once, idempotency_key, idempotent
from serve_app.http.json_text import parse_object
from serve_app.http.large_bodies import large_body, max_document_bytes
from serve_app.http.prefer import Preference, parse_prefer
from serve_app.http.query import QueryModel, parse_query
from serve_app.http.request_body import check_content_type, read_bounded
from serve_app.http.resources import MAX_PAGE, PageQuery, json_answer, page_object, path_id
from serve_app.http.wire_model import parse
from serve_app.jobs.job import Job
from serve_app.services import Services
from serve_app.use_cases.callers import Caller, Dialect, Scope
from serve_app.use_cases.fine_tuning import FineTuneCommand


class EventsQuery(QueryModel):
    limit: int = Field(100, ge=1, le=MAX_PAGE, description="The largest number of events to answer.")
    after: int | None = Field(None, ge=0, lt=2**63, description="The `next` of the page before.")


def add_routes(routes: APIRouter, services: Services) -> None:
    http, config = services.config.http, services.config.fine_tuning

    async def identify(request: Request) -> Caller:
        return await authenticate(request, services, Dialect.AITEXTGEN, scope=Scope.FINE_TUNE)

    def read(body: bytes) -> FineTuneBody:
        """Megabytes take their time; to be called in a thread."""
        fields = parse(FineTuneBody, parse_object(body, max_depth=http.max_json_depth))
        services.document_training.check(fields.training_data, DATA)
        return fields

    async def fine_tune(request: Request) -> Response:
        """Trains a model on texts and waits for it; the model can be used on all APIs as soon as this answers.

        Training that takes long is answered with 202, and so is a request with `Prefer: respond-async` or `wait=N`. A
        client that goes away cancels nothing.
        """
        caller = await identify(request)
        await services.admission.count(caller)
        key = idempotency_key(request)
        check_content_type(request)
        async with large_body(request, services) as arriving:
            created = await make_job(arriving, caller, key)
        preference = parse_prefer(request.headers.getlist(prefer.HEADER))
        hold_s = preference.hold_s(config.hold_s)
        waiting = services.fine_tuning.wait(caller.account, created.id, timeout_s=hold_s)
        job = await run_while_connected(request, waiting, deadline_s=hold_s + GRACE_S)
        response = answer(job, preference)
        if created.is_replayed:
            response.headers[REPLAYED_HEADER] = "true"
        return response

    async def make_job(request: Request, caller: Caller, key: str | None) -> Created:
        """Nobody has the body and the texts in memory any more when this returns."""
        body = await read_bounded(request, max_document_bytes(services.config))
        fields = await services.idempotency.to_the_end(asyncio.to_thread(read, body))
        principal = caller.principal
        model = fields.model if fields.model is not None else services.models.default(principal).id
        base = await services.models.trainable(principal, model)

        async def create(once: bytes | None) -> str:
            command = FineTuneCommand(
                account=caller.account,
                key_id=principal.key_id,
                dialect=caller.dialect.value,
                base_model=base.id,
                training_file="",
                params=to_params(fields),
                name=fields.name,
                data_param=DATA,
                once=once,
            )
            job = await services.document_training.create(command, fields.training_data, filename=f"{DATA}.jsonl")
            return job.id

        return await create_once(request, services, caller, create, key=key, body=body)

    def answer(job: Job, preference: Preference) -> Response:
        """Raises why there is no model, where the job has ended without one."""
        failure = failure_of(job)
        if failure is not None:
            raise failure
        if job.status.is_final:
            return json_answer(success_object(job))
        response = json_answer(accepted_object(job), status=202, location=f"{PATH}/{job.id}")
        response.headers["Retry-After"] = str(retry_after_s(job))
        applied = preference.applied(config.hold_s)
        if applied:
            response.headers[prefer.APPLIED_HEADER] = applied
        return response

    async def list_jobs(request: Request) -> Response:
        """The account's fine-tuning jobs, those of the other APIs too, the newest first."""
        caller = await identify(request)
        query = parse_query(PageQuery, request)
        jobs = await services.fine_tuning.list(caller.account, after=query.after, limit=query.limit + 1)
        return json_answer(page_object(jobs, query.limit, job_object, lambda job: job.id))

    async def get_job(request: Request) -> Response:
        """How a job stands; once it has succeeded, with what the request that made it was, or would have been, told."""
        caller = await identify(request)
        return json_answer(job_object(await services.fine_tuning.get(caller.account, path_id(request, "job"))))

    async def list_events(request: Request) -> Response:
        """What happened to a job, the newest first: losses, checkpoints, lost workers, its end."""
        caller = await identify(request)
        job_id = path_id(request, "job")
        query = parse_query(EventsQuery, request)
        events = await services.fine_tuning.events(caller.account, job_id, after=query.after, limit=query.limit + 1)
        return json_answer(page_object(events, query.limit, event_object, lambda event: event.id))

    @idempotent(services, identify, to_the_end=True)
    async def cancel_job(request: Request) -> Response:
        """Ends a job that has not ended."""
        caller = await identify(request)
        job_id = path_id(request, "job")
        await services.admission.count(caller)
        return json_answer(job_object(await services.fine_tuning.cancel(caller.account, job_id)))

    routes.add_api_route(PATH, fine_tune, methods=["POST"], **documents.FINE_TUNE)
    routes.add_api_route(PATH, list_jobs, methods=["GET"], **documents.LIST)
    routes.add_api_route(f"{PATH}/{{job}}", get_job, methods=["GET"], **documents.GET)
    routes.add_api_route(f"{PATH}/{{job}}/events", list_events, methods=["GET"], **documents.events(EventsQuery))
    routes.add_api_route(f"{PATH}/{{job}}/cancel", cancel_job, methods=["POST"], **documents.CANCEL)
