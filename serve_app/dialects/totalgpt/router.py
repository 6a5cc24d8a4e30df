"""All routes of the TotalGPT dialect, in an order in which none hides another."""

from fastapi import APIRouter

from serve_app.dialects.totalgpt import chat, completions, models, token_counter, tokenize
from serve_app.services import Services


def router(services: Services) -> APIRouter:
    routes = APIRouter(tags=["TotalGPT"])
    # Completions come last: `/v1/{model}/completions` would take `/v1/chat/completions` for those of a model `chat`.
    for module in (models, token_counter, tokenize, chat, completions):
        module.add_routes(routes, services)
    return routes
