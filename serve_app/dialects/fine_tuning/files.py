"""`/v1/files`: what is trained on, uploaded as a form."""

from pathlib import PurePath
from typing import Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response

from deployments.errors import InvalidParameter, InvalidTrainingData
from serve_app.dialects.fine_tuning import documents
from serve_app.dialects.fine_tuning.call import fine_tuner, page_object
from serve_app.dialects.fine_tuning.formats import PARAM, parse_documents
from serve_app.dialects.fine_tuning.wire import file_object
from serve_app.http.form import FRAME_BYTES, Form, read_form
from serve_app.http.idempotency import idempotent
from serve_app.http.large_bodies import large_body
from serve_app.http.opened_file import OpenedFile
from serve_app.http.query import QueryModel, parse_query
from serve_app.http.resources import json_answer, path_id
from serve_app.services import Services
from serve_app.use_cases.callers import Caller
from serve_app.use_cases.document_training import PURPOSE

PATH = "/v1/files"

_MAX_PAGE = 10_000
_MAX_FILENAME = 200
_EXPIRY = ("expires_after[anchor]", "expires_after[seconds]")


class FilesQuery(QueryModel):
    limit: int = Field(_MAX_PAGE, ge=1, le=_MAX_PAGE, description="The largest number of files to answer.")
    after: str | None = Field(None, description="The `last_id` of the page before.")
    order: Literal["asc", "desc"] = Field("desc", description="By the time of the upload.")
    purpose: str | None = Field(None, description="Only the files of this purpose.")


def add_routes(routes: APIRouter, services: Services) -> None:
    config = services.config.fine_tuning
    max_bytes = config.max_data_bytes + FRAME_BYTES

    async def counted(request: Request) -> Caller:
        """Who was authenticated and counted before the body was read."""
        caller: Caller = request.state.caller
        return caller

    async def create_file(request: Request) -> Response:
        """Uploads documents to train on: JSON lines, plain text or CSV, as the name of the file ends.

        A line of JSON holds `messages`, `prompt` and `completion`, `text`, or is a string. A text is one document, or
        several with `<|endoftext|>` between them. A CSV has a document in each row.
        """
        caller = await fine_tuner(request, services)
        await services.admission.count(caller)
        async with large_body(request, services) as arriving:
            return await take_in(arriving)

    @idempotent(services, counted, to_the_end=True, max_bytes=max_bytes)
    async def take_in(request: Request) -> Response:
        caller = await counted(request)
        async with read_form(request, max_bytes=max_bytes, fields=("purpose", *_EXPIRY), files=(PARAM,)) as form:
            upload = _check(form)
            filename = _filename(upload)
            data = await upload.read()
        if len(data) > config.max_data_bytes:
            raise InvalidTrainingData(f"the file must have at most {config.max_data_bytes} bytes", PARAM)
        file = await services.files.add(
            caller.account,
            filename=filename,
            purpose=PURPOSE,
            original=data,
            documents=parse_documents(filename, data),
            param=PARAM,
        )
        return json_answer(file_object(file))

    async def list_files(request: Request) -> Response:
        """The account's files, those that other APIs made of their documents too."""
        caller = await fine_tuner(request, services)
        query = parse_query(FilesQuery, request)
        files = await services.files.list(
            caller.account,
            after=query.after,
            limit=query.limit + 1,
            purpose=query.purpose,
            oldest_first=query.order == "asc",
        )
        return json_answer(page_object(files, query.limit, file_object))

    async def retrieve_file(request: Request) -> Response:
        """One file."""
        caller = await fine_tuner(request, services)
        return json_answer(file_object(await services.files.get(caller.account, path_id(request, "file"))))

    async def retrieve_content(request: Request) -> Response:
        """The file as it was uploaded."""
        caller = await fine_tuner(request, services)
        file, num_bytes = await services.files.open_content(caller.account, path_id(request, "file"))
        return OpenedFile(file, num_bytes=num_bytes)

    async def delete_file(request: Request) -> Response:
        """Ends a file for good. Jobs that were made from it go on."""
        caller = await fine_tuner(request, services)
        file_id = path_id(request, "file")
        await services.files.delete(caller.account, file_id)
        return json_answer({"id": file_id, "object": "file", "deleted": True})

    routes.add_api_route(PATH, create_file, methods=["POST"], **documents.CREATE_FILE)
    routes.add_api_route(PATH, list_files, methods=["GET"], **documents.list_files(FilesQuery))
    routes.add_api_route(f"{PATH}/{{file}}", retrieve_file, methods=["GET"], **documents.RETRIEVE_FILE)
    routes.add_api_route(f"{PATH}/{{file}}", delete_file, methods=["DELETE"], **documents.DELETE_FILE)
    routes.add_api_route(f"{PATH}/{{file}}/content", retrieve_content, methods=["GET"], **documents.FILE_CONTENT)


def _check(form: Form) -> UploadFile:
    """The file of the form. Raises InvalidParameter."""
    if PARAM not in form.files:
        raise InvalidParameter(f"{PARAM} is required", PARAM)
    if "purpose" not in form.fields:
        raise InvalidParameter("purpose is required", "purpose")
    if form.fields["purpose"] != PURPOSE:
        raise InvalidParameter(f"purpose must be {PURPOSE}", "purpose")
    if any(name in form.fields for name in _EXPIRY):
        raise InvalidParameter("expires_after is not supported: files stay until they are deleted", "expires_after")
    return form.files[PARAM]


def _filename(upload: UploadFile) -> str:
    """The last part of the path that the client knows it by. Raises InvalidParameter."""
    filename = PurePath((upload.filename or "").replace("\\", "/")).name or "upload"
    if len(filename) > _MAX_FILENAME or not filename.isprintable():
        raise InvalidParameter(f"the file's name must have at most {_MAX_FILENAME} printable characters", PARAM)
    return filename
