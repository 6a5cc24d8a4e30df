"""All routes of the administration, and those by which a key asks about its own account."""

from fastapi import APIRouter

from serve_app.admin import accounts, audit, keys, own_account, reports
from serve_app.services import Services


def routers(services: Services) -> list[APIRouter]:
    own = APIRouter(tags=["Account"])
    own_account.add_routes(own, services)
    administration = APIRouter(tags=["Administration"])
    for module in (accounts, keys, reports, audit):
        module.add_routes(administration, services)
    return [own, administration]
