"""Whether the process lives and whether it can answer, for load balancers; needs no key."""

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from serve_app.http.json_text import to_json
from serve_app.services import Services

_HEADERS = {"Cache-Control": "no-store"}


def router(services: Services) -> APIRouter:
    routes = APIRouter(tags=["Service"])

    async def health() -> Response:
        """Answers as long as the process can answer at all."""
        return Response(to_json({"status": "ok"}), media_type="application/json", headers=_HEADERS)

    async def ready() -> Response:
        """Whether every model can answer; one that sleeps can."""
        is_ready = await services.is_ready()
        return Response(
            to_json({"status": "ready" if is_ready else "not ready"}),
            status_code=200 if is_ready else 503,
            media_type="application/json",
            headers=_HEADERS,
        )

    routes.add_api_route(
        "/health", health, summary="Liveness", responses={200: _documented("The process lives.", "ok")}
    )
    routes.add_api_route(
        "/ready",
        ready,
        summary="Readiness",
        responses={
            200: _documented("The service can answer.", "ready"),
            503: _documented("The service cannot answer now.", "not ready"),
        },
    )
    for path, endpoint in (("/health", health), ("/ready", ready)):
        routes.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)
    return routes


def _documented(description: str, status: str) -> dict[str, Any]:
    content = {"schema": {"type": "object"}, "example": {"status": status}}
    return {"description": description, "content": {"application/json": content}}
