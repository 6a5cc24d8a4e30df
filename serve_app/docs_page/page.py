"""The routes of the API reference: a page and its style sheet, without scripts and without any other host."""

from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

import jinja2
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from serve_app.docs_page.operations import operations_of

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}


def router(document: Callable[[], Mapping[str, Any]]) -> APIRouter:
    """`document` gives the OpenAPI document; it is asked once for each page view."""
    routes = APIRouter(include_in_schema=False)
    files = resources.files("serve_app.docs_page")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files.joinpath("reference.html").read_text("utf-8"))
    style = files.joinpath("reference.css").read_text("utf-8")

    @routes.get("/docs")
    async def reference(request: Request) -> Response:
        described = document()
        base_url = str(request.base_url).rstrip("/")
        html = template.render(info=described["info"], tags=operations_of(described, base_url=base_url))
        return HTMLResponse(html, headers=_HEADERS)

    @routes.get("/docs/reference.css")
    async def style_sheet() -> Response:
        return Response(style, media_type="text/css", headers={"Cache-Control": "max-age=300"})

    return routes
