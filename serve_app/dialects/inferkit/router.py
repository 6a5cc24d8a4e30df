"""All routes of the InferKit dialect."""

from fastapi import APIRouter

from serve_app.dialects.inferkit import generate, generators
from serve_app.services import Services


def router(services: Services) -> APIRouter:
    routes = APIRouter(tags=["InferKit"])
    for module in (generate, generators):
        module.add_routes(routes, services)
    return routes
