"""Renders any error of the service, in the one body that the clients of all three dialects can read.

OpenAI's clients read `error.message/type/param/code`, InferKit's `error.extensions.code` with Apollo's words.
"""

import logging
import math
import traceback
from typing import Any

from starlette.responses import Response

from deployments.errors import (
    GeneratorNotDeployed,
    MethodNotAllowed,
    OutOfCredits,
    Overloaded,
    RateLimited,
    ServiceError,
)
from serve_app.http.json_text import to_json

_logger = logging.getLogger(__name__)

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_EXTENSION_CODES = {
    400: "BAD_USER_INPUT",
    401: "UNAUTHENTICATED",
    403: "FORBIDDEN",
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    409: "CONFLICT",
    413: "PAYLOAD_TOO_LARGE",
    422: "BAD_USER_INPUT",
    429: "RATE_LIMITED",
    503: "OVERLOADED",
    504: "DEADLINE_EXCEEDED",
}


def public_error(error: Exception, request_id: str) -> ServiceError:
    """What the client may know of `error`: a ServiceError as it is, anything else as a generic one, and logged.

    The log gets the kind of the exception and where it arose, not its message, which may quote a prompt.
    """
    if isinstance(error, ServiceError):
        return error
    frames = "".join(traceback.format_tb(error.__traceback__))
    _logger.error("request %s failed with %s\n%s", request_id, type(error).__name__, frames)
    return ServiceError(f"something went wrong on our side; the request id is {request_id}")


def error_body(error: ServiceError) -> dict[str, Any]:
    """The unified error object."""
    default_type = "invalid_request_error" if error.status < 500 else "server_error"
    return {
        "error": {
            "message": error.message,
            "type": _TYPES.get(error.status, default_type),
            "param": error.param,
            "code": error.code,
            "extensions": {"code": _extension_code(error)},
        }
    }


def _extension_code(error: ServiceError) -> str:
    if isinstance(error, OutOfCredits | GeneratorNotDeployed):
        return error.code.upper()
    return _EXTENSION_CODES.get(error.status, "INTERNAL_SERVER_ERROR")


def error_response(error: Exception, request_id: str) -> Response:
    """The whole answer: status, body and the headers that belong to the error."""
    public = public_error(error, request_id)
    return Response(
        to_json(error_body(public)),
        status_code=public.status,
        headers=_headers(public),
        media_type="application/json",
    )


def error_as_sse(error: Exception, request_id: str) -> bytes:
    """The error as the end of a started stream of server-sent events: one event and the end mark.

    OpenAI's clients raise when an event's JSON has an `error`.
    """
    return b"data: " + to_json(error_body(public_error(error, request_id))) + b"\n\ndata: [DONE]\n\n"


def error_as_ndjson(error: Exception, request_id: str) -> bytes:
    """The error as the last line of a started stream of JSON lines."""
    return to_json(error_body(public_error(error, request_id))) + b"\n"


def _headers(error: ServiceError) -> dict[str, str]:
    if error.status == 401:
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, MethodNotAllowed):
        return {"Allow": error.allow}
    if isinstance(error, Overloaded | RateLimited):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
    return {}
