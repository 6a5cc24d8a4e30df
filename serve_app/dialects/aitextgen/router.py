"""All routes of the AITextGen dialect."""

from fastapi import APIRouter

from serve_app.dialects.aitextgen import finetune, generate, webhooks
from serve_app.services import Services


def router(services: Services) -> APIRouter:
    routes = APIRouter(tags=["AITextGen"])
    for module in (generate, finetune, webhooks):
        module.add_routes(routes, services)
    return routes
