"""All routes of this dialect."""

from fastapi import APIRouter

from serve_app.dialects.fine_tuning import files, jobs
from serve_app.services import Services


def router(services: Services) -> APIRouter:
    routes = APIRouter(tags=["Fine-tuning"])
    files.add_routes(routes, services)
    jobs.add_routes(routes, services)
    return routes
