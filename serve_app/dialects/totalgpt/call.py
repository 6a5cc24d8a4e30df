"""What the routes of this dialect share: who calls, which model, which body; and the envelope of an answer."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from deployments.errors import InvalidParameter
from deployments.types import Usage
from serve_app.http.authentication import authenticate
from serve_app.http.idempotency import Endpoint, idempotent
from serve_app.http.request_body import read_json
from serve_app.services import Services
from serve_app.use_cases.callers import Caller, Dialect
from serve_app.use_cases.models import ServedModel


@dataclass(frozen=True, slots=True)
class Call:
    """A request that is authenticated, holds a JSON object and asks for a model that exists.

    `model_name` is what the client calls it, an id or an alias.
    """

    caller: Caller
    model_name: str
    model: ServedModel
    body: Mapping[str, Any]


async def read_call(
    request: Request, services: Services, path_model: str | None = None, *, model_is_optional: bool = False
) -> Call:
    """Checks in this order: the key (401), the model of the path (404), the body (400), the model of the body (404).

    The path's model wins over the body's. Without either, the default model where `model_is_optional`, else 400.
    Raises Unauthenticated, ModelNotFound, InvalidRequest.
    """
    caller = await authenticate(request, services, Dialect.TOTALGPT)
    if path_model is not None:
        await services.models.resolve(caller.principal, path_model)
    body = await read_json(
        request,
        max_bytes=services.config.http.max_body_bytes,
        max_depth=services.config.http.max_json_depth,
        require_json_content_type=True,
    )
    model_name = path_model if path_model is not None else body.get("model")
    if model_name is None and model_is_optional:
        model_name = services.models.default(caller.principal).id
    if model_name is None:
        raise InvalidParameter("model is required", "model")
    if not isinstance(model_name, str):
        raise InvalidParameter("model must be a string", "model")
    model = await services.models.resolve(caller.principal, model_name)
    return Call(caller, model_name, model, body)


def once(services: Services) -> Callable[[Endpoint], Endpoint]:
    """For endpoints that bill: obeys the header Idempotency-Key."""

    async def identify(request: Request) -> Caller:
        return await authenticate(request, services, Dialect.TOTALGPT)

    return idempotent(services, identify)


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every object of one answer has in common. `created` is Unix time, `model` what the client called it."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str

    def around(self, choices: Sequence[Mapping[str, Any]], **fields: Any) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
            "choices": choices,
            **fields,
        }


def make_envelope(call: Call, *, prefix: str, object_name: str) -> Envelope:
    return Envelope(
        f"{prefix}-{call.caller.request_id}", object_name, int(time.time()), call.model_name, fingerprint(call.model)
    )


def fingerprint(model: ServedModel) -> str:
    """Changes when the configuration that answers does: equal seeds give equal texts under equal fingerprints."""
    adapter = "" if model.adapter is None else model.adapter.digest
    return "fp_" + hashlib.sha256((model.base.model_dump_json() + adapter).encode()).hexdigest()[:12]


def usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
