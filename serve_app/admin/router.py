"""All routes of the administration, and those by which a key asks about its own account."""

from fastapi import APIRouter

from serve_app.admin import accounts, audit, keys, own_account, reports
from serve_app.services import Services


def router(services: Services) -> APIRouter:
    routes = APIRouter()
    own = APIRouter(tags=["Account"])
    own_account.add_routes(own, services)
    administration = APIRouter(tags=["Administration"])
    for module in (accounts, keys, reports, audit):
        module.add_routes(administration, services)
    routes.include_router(own)
    routes.include_router(administration)
    return routes
