"""The OpenAPI document: what FastAPI finds out, plus what is the same for every route. Knows no dialect's fields.

Routes read their bodies by hand, so a route describes its own: `openapi_extra=request_body(...)`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.routing import BaseRoute

from deployments.errors import (
    DeadlineExceeded,
    GenerationFailed,
    Overloaded,
    PermissionDenied,
    RateLimited,
    ServiceError,
    Unauthenticated,
)
from serve_app.http.error_response import error_body

_OPEN_PATHS = ("/health", "/ready")
_PATH_PARAMETER = re.compile(r"\{(\w+)\}")

HEADERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "Idempotency-Key": (
        "The same request with the same key takes effect once: sent again within 24 hours, it gives the same answer.",
        {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
    ),
    "Prefer": (
        "`wait=N`: how many seconds the client waits; `respond-async`: an answer at once, or after those seconds.",
        {"type": "string", "pattern": "^[ -~]*$"},
    ),
}
_PATH_PARAMETERS = {
    "account": ("The id of an account.", "acme"),
    "key": ("The id of a key.", "0NPvBYYJqMZjhFkd9"),
    "job": ("The id of a fine-tuning job.", "ftjob-2n4k8zq0w1m5c7x9b3v6t0ay"),
    "webhook": ("The id of a webhook.", "whep_5t8w1z4c7f0j3m6p9s2v5y8b"),
    "delivery": ("The id of a delivery.", "whd_0a3d6g9k2n5q8t1w4z7c0f3j"),
    "file": ("The id of a file.", "file-7h3k9q2x5m8b1c4v6n0z2tay"),
}


def request_body(model: type[BaseModel], examples: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """For a route's `openapi_extra`: a JSON body of this model, with named examples."""
    content = {"schema": inline_schema(model), "examples": _examples(examples)}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def billed_request(model: type[BaseModel], examples: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The same for a route that obeys the header Idempotency-Key."""
    return {**request_body(model, examples), "parameters": [header_parameter("Idempotency-Key")]}


def answer(
    description: str, model: type[BaseModel], examples: Mapping[str, Any], *, media_type: str = "application/json"
) -> dict[str, Any]:
    """For a route's `responses`: an answer of this model, with named examples."""
    content = {"schema": inline_schema(model), "examples": _examples(examples)}
    return {"description": description, "content": {media_type: content}}


def text_answer(media_type: str, description: str, example: str) -> dict[str, Any]:
    """For a route's `responses`: an answer that is no single JSON value, such as a stream."""
    return {"description": description, "content": {media_type: {"schema": {"type": "string"}, "example": example}}}


def header_parameter(name: str) -> dict[str, Any]:
    """For a route's `openapi_extra`: a request header of `HEADERS`."""
    description, schema = HEADERS[name]
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}


def inline_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The model's JSON schema with the definitions it refers to put in their places; it must not contain itself."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def resolve(node: Any) -> Any:
        if isinstance(node, list):
            return [resolve(item) for item in node]
        if not isinstance(node, dict):
            return node
        siblings = {name: resolve(value) for name, value in node.items() if name != "$ref"}
        if "$ref" in node:
            return {**resolve(definitions[node["$ref"].rpartition("/")[2]]), **siblings}
        return siblings

    resolved: dict[str, Any] = resolve(schema)
    return resolved


def openapi_document(
    routes: Sequence[BaseRoute], *, title: str, version: str, description: str, example_model: str
) -> dict[str, Any]:
    """The document of these routes. Every route but the probes needs a key and can fail in the same ways.

    What stands in braces in a path is the id of what it is called, else a model's id, for example `example_model`.
    """
    document = get_openapi(title=title, version=version, description=description, routes=routes)
    components = document.setdefault("components", {})
    components["schemas"] = {"Error": _ERROR_SCHEMA}
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "An API key of this service."}
    }
    document["security"] = [{"bearer": []}]
    for route in routes:
        if isinstance(route, APIRoute) and route.openapi_extra and route.include_in_schema:
            for method in route.methods or ():
                # Once more: FastAPI has turned the bounds of integers into floats, which cannot hold all of them.
                document["paths"][route.path_format][method.lower()].update(route.openapi_extra)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            others = [parameter for parameter in operation.get("parameters", ()) if parameter["in"] != "path"]
            in_path = [_path_parameter(name, example_model) for name in _PATH_PARAMETER.findall(path)]
            if in_path or others:
                operation["parameters"] = [*in_path, *others]
            # FastAPI's own validation error, which no route here answers with.
            operation["responses"].pop("422", None)
            if path in _OPEN_PATHS:
                operation["security"] = []
            else:
                operation["responses"].update(_failures(operation, has_body="requestBody" in operation))
    return document


def _path_parameter(name: str, example_model: str) -> dict[str, Any]:
    description, example = _PATH_PARAMETERS.get(
        name, ("The id or an alias of a model; it may contain slashes.", example_model)
    )
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": {"type": "string", "minLength": 1},
        "example": example,
    }


def _failures(operation: Mapping[str, Any], *, has_body: bool) -> dict[str, Any]:
    """What can go wrong: with every request, with parameters and bodies, and where a key makes it idempotent."""
    failures: dict[int, tuple[str, ServiceError]] = {
        401: ("The API key is missing or not valid.", Unauthenticated("the API key is not valid")),
        403: ("The API key lacks the scope for this.", PermissionDenied("this key may not be used for this")),
        500: ("Something went wrong on our side.", GenerationFailed("the model failed on this request")),
        503: ("Too much to do; come back after `Retry-After` seconds.", Overloaded("too many requests are waiting")),
    }
    is_repeatable = any(parameter["name"] == "Idempotency-Key" for parameter in operation.get("parameters", ()))
    if has_body or is_repeatable:
        failures |= {
            429: (
                "The key's limit is reached; come back after `Retry-After` seconds.",
                RateLimited("the key's limit of 100 requests in 60 seconds is reached", 30),
            ),
            504: ("The answer did not come in time.", DeadlineExceeded("the answer did not come within 600 seconds")),
        }
    described = {
        str(status): _failure(description, error_body(error)) for status, (description, error) in failures.items()
    }
    described["404"] = _failure("There is no such thing, or it is another account's.")
    if has_body or "parameters" in operation:
        described["400"] = _failure("The request is not valid; `error.param` names the field at fault.")
    if has_body:
        described["413"] = _failure("The body is too long.")
    if is_repeatable:
        described["409"] = _failure("A request with this Idempotency-Key runs, or the id is taken.")
        described["422"] = _failure("The Idempotency-Key was used for another request.")
    return dict(sorted(described.items()))


def _failure(description: str, example: dict[str, Any] | None = None) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": {"$ref": "#/components/schemas/Error"}}
    if example is not None:
        content["example"] = example
    return {"description": description, "content": {"application/json": content}}


def _examples(examples: Mapping[str, Any]) -> dict[str, Any]:
    return {name: {"value": value} for name, value in examples.items()}


_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code", "extensions"],
            "properties": {
                "message": {"type": "string", "description": "What is wrong, for people."},
                "type": {"type": "string", "description": "The kind of error, in OpenAI's words."},
                "param": {"type": ["string", "null"], "description": "The field at fault."},
                "code": {"type": "string", "description": "What is wrong, for programs."},
                "extensions": {
                    "type": "object",
                    "required": ["code"],
                    "properties": {"code": {"type": "string", "description": "The kind of error, in Apollo's words."}},
                },
            },
        }
    },
}
