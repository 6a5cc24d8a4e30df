"""The HTTP application: the dialects' routes, probes, reference pages, middleware. Imports neither Ray nor torch."""

from functools import cache
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import BaseRoute

from serve_app.admin import router as administration
from serve_app.dialects import aitextgen, fine_tuning, inferkit, totalgpt
from serve_app.docs_page import page
from serve_app.http import probes
from serve_app.http.cross_origin import CrossOriginMiddleware
from serve_app.http.error_middleware import ErrorMiddleware
from serve_app.http.json_text import to_json
from serve_app.http.openapi import openapi_document
from serve_app.http.rate_limits import RateLimitHeadersMiddleware, RefusalCountMiddleware
from serve_app.http.request_id import RequestIdMiddleware
from serve_app.http.unmatched import render_http_exceptions
from serve_app.services import Services

_DESCRIPTION = """\
Text generation by three APIs over the same models: AITextGen, InferKit and TotalGPT (OpenAI-style completions).

Every request but the probes needs an API key, sent as `Authorization: Bearer YOUR_API_KEY`. Errors have the same body \
everywhere: `error.message` says what is wrong, `error.param` names the field at fault."""


def create_api(services: Services) -> FastAPI:
    """The application over these services. Raises nothing; it starts no work before its first request."""
    api = FastAPI(
        title="Tritext",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        middleware=[
            Middleware(RequestIdMiddleware),
            Middleware(CrossOriginMiddleware),
            Middleware(RateLimitHeadersMiddleware),
            Middleware(ErrorMiddleware),
            Middleware(RefusalCountMiddleware, services.admission),
        ],
    )

    routers = [
        probes.router(services),
        aitextgen.router(services),
        inferkit.router(services),
        fine_tuning.router(services),
        *administration.routers(services),
        # Last: its routes with the model in the path match almost anything.
        totalgpt.router(services),
    ]
    routes: list[BaseRoute] = [route for router in routers for route in router.routes]

    @cache
    def document() -> dict[str, Any]:
        return openapi_document(
            routes,
            title="Tritext",
            version="1",
            description=_DESCRIPTION,
            example_model=services.models.catalog.default.id,
        )

    @api.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return Response(to_json(document()), media_type="application/json")

    api.include_router(page.router(document))
    for router in routers:
        api.include_router(router)
    api.add_exception_handler(HTTPException, render_http_exceptions([*api.routes, *routes]))
    return api
