"""Reads an uploaded form (multipart/form-data) within its bounds. Knows no API's fields."""

from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.types import Message, Receive

from deployments.errors import InvalidParameter, InvalidRequest, PayloadTooLarge

FRAME_BYTES = 64 * 1024
"""What a form may have around its files."""

_MAX_FIELDS = 32


@dataclass(frozen=True, slots=True)
class Form:
    """The text fields and the files by their names."""

    fields: Mapping[str, str]
    files: Mapping[str, UploadFile]


@asynccontextmanager
async def read_form(
    request: Request, *, max_bytes: int, fields: Collection[str], files: Collection[str]
) -> AsyncGenerator[Form, None]:
    """The form, which may have these fields and files and no others. What is large waits on disk until all of it has
    arrived; it is deleted when the context ends.

    max_bytes: of the whole body. Raises PayloadTooLarge, InvalidRequest, InvalidParameter.
    """
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
        raise InvalidRequest("the content type must be multipart/form-data")
    bounded = Request(request.scope, _bounded(request.receive, max_bytes))
    try:
        form = await bounded.form(max_files=len(files), max_fields=_MAX_FIELDS, max_part_size=FRAME_BYTES)
    except HTTPException as error:
        raise InvalidRequest(f"the form cannot be read: {error.detail}") from None
    except MultiPartException as error:
        raise InvalidRequest(f"the form cannot be read: {error.message}") from None
    try:
        yield _sorted(form.multi_items(), fields, files)
    finally:
        await form.close()


def _sorted(items: list[tuple[str, UploadFile | str]], fields: Collection[str], files: Collection[str]) -> Form:
    texts: dict[str, str] = {}
    uploads: dict[str, UploadFile] = {}
    for name, value in items:
        if name in texts or name in uploads:
            raise InvalidParameter(f"{name} stands twice", name)
        if name not in fields and name not in files:
            raise InvalidParameter(f"{name} is not a field of this form", name)
        if isinstance(value, str):
            if name in files:
                raise InvalidParameter(f"{name} must be a file", name)
            texts[name] = value
        else:
            if name in fields:
                raise InvalidParameter(f"{name} must be a text, not a file", name)
            uploads[name] = value
    return Form(texts, uploads)


def _bounded(receive: Receive, max_bytes: int) -> Receive:
    num_bytes = 0

    async def receive_bounded() -> Message:
        nonlocal num_bytes
        message = await receive()
        num_bytes += len(message.get("body", b""))
        if num_bytes > max_bytes:
            raise PayloadTooLarge(f"the body is longer than {max_bytes} bytes")
        return message

    return receive_bounded
