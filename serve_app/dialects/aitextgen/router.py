"""All routes of the AITextGen dialect."""

from fastapi import APIRouter

from serve_app.dialects.aitextgen import finetune, generate
from serve_app.services import Services


def router(services: Services) -> APIRouter:
    routes = APIRouter(tags=["AITextGen"])
    for module in (generate, finetune):
        module.add_routes(routes, services)
    return routes
