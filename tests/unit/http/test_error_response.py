"""One body for all errors, with the headers that belong to the status."""

import json
import logging

import pytest

from deployments.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineDead,
    GenerationFailed,
    InvalidParameter,
    InvalidRequest,
    MethodNotAllowed,
    ModelNotFound,
    Overloaded,
    PayloadTooLarge,
    PermissionDenied,
    ServiceError,
    Unauthenticated,
)
from serve_app.http.error_response import error_as_ndjson, error_as_sse, error_response

ERRORS = [
    (InvalidRequest("m"), 400, "invalid_request_error", "BAD_USER_INPUT", None),
    (InvalidParameter("m", "top_p"), 400, "invalid_request_error", "BAD_USER_INPUT", "top_p"),
    (ContextLengthExceeded(9, 8), 400, "invalid_request_error", "BAD_USER_INPUT", "prompt"),
    (PayloadTooLarge("m"), 413, "invalid_request_error", "PAYLOAD_TOO_LARGE", None),
    (Unauthenticated("m"), 401, "authentication_error", "UNAUTHENTICATED", None),
    (PermissionDenied("m"), 403, "permission_error", "FORBIDDEN", None),
    (ModelNotFound("x"), 404, "invalid_request_error", "NOT_FOUND", "model"),
    (MethodNotAllowed("m", "POST"), 405, "invalid_request_error", "METHOD_NOT_ALLOWED", None),
    (Overloaded("m", 3.2), 503, "server_error", "OVERLOADED", None),
    (DeadlineExceeded("m"), 504, "server_error", "DEADLINE_EXCEEDED", None),
    (GenerationFailed("m"), 500, "server_error", "INTERNAL_SERVER_ERROR", None),
    (EngineDead("m"), 500, "server_error", "INTERNAL_SERVER_ERROR", None),
]


@pytest.mark.parametrize(("error", "status", "kind", "extension", "param"), ERRORS)
def test_every_error_has_the_one_body(
    error: ServiceError, status: int, kind: str, extension: str, param: str | None
) -> None:
    response = error_response(error, "id")
    assert response.status_code == status
    assert json.loads(bytes(response.body)) == {
        "error": {
            "message": error.message,
            "type": kind,
            "param": param,
            "code": error.code,
            "extensions": {"code": extension},
        }
    }


@pytest.mark.parametrize(
    ("error", "name", "value"),
    [
        (Unauthenticated("m"), "www-authenticate", "Bearer"),
        (MethodNotAllowed("m", "GET, POST"), "allow", "GET, POST"),
        (Overloaded("m", 0.0), "retry-after", "1"),
        (Overloaded("m", 1.0), "retry-after", "1"),
        (Overloaded("m", 1.01), "retry-after", "2"),
    ],
)
def test_headers_of_the_status(error: ServiceError, name: str, value: str) -> None:
    assert error_response(error, "id").headers[name] == value


def test_unknown_error_is_generic_and_its_message_stays_here(caplog: pytest.LogCaptureFixture) -> None:
    prompt = "a " + "prompt"
    try:
        raise KeyError(prompt)
    except KeyError as error:
        with caplog.at_level(logging.ERROR):
            response = error_response(error, "request-7")
    assert response.status_code == 500
    message = json.loads(bytes(response.body))["error"]["message"]
    assert "request-7" in message
    assert "a prompt" not in message
    assert "KeyError" in caplog.text
    assert "a prompt" not in caplog.text


def test_framings_end_a_stream() -> None:
    error = GenerationFailed("m")
    body = bytes(error_response(error, "id").body)
    assert error_as_sse(error, "id") == b"data: " + body + b"\n\ndata: [DONE]\n\n"
    assert error_as_ndjson(error, "id") == body + b"\n"
