"""Services over a real SQLite database and fake models, with an administrator, for tests of the administration."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx

from serve_app.api import create_api
from serve_app.config import BillingConfig, LimitsConfig
from serve_app.ledger.billing import make_prices
from serve_app.services import Services
from serve_app.stores.accounts import SqlAccountStore
from serve_app.stores.admission import SqlAdmissionStore
from serve_app.stores.audit import SqlAuditLog
from serve_app.stores.database import open_database
from serve_app.stores.idempotency import SqlIdempotentRequests
from serve_app.stores.keys import SqlKeyStore
from serve_app.stores.owners import SqlOwners
from serve_app.stores.tuned_models import SqlTunedModels
from serve_app.stores.usage import SqlUsageReports
from serve_app.use_cases.accounts import Accounts
from serve_app.use_cases.admission import Admission, Rules, make_limits
from serve_app.use_cases.callers import Scope
from serve_app.use_cases.generate import TextGeneration
from serve_app.use_cases.idempotency import SealedAnswers
from serve_app.use_cases.idempotent_runs import IdempotentRuns
from serve_app.use_cases.key_records import KeyGrant
from serve_app.use_cases.keys import Keys
from serve_app.use_cases.models import Models
from serve_app.use_cases.tuned_models import TunedModels
from tests.api.conftest import make_services

PEPPER = b"a pepper of 32 bytes for the tests"
OWNER = "this-process"


@dataclass(frozen=True, slots=True)
class Service:
    """A running service: `admin` and `client` send a key with all scopes and one of another account for inference."""

    services: Services
    admin: httpx.AsyncClient
    admin_key: str
    client: httpx.AsyncClient
    client_key: str

    def with_key(self, key: str) -> httpx.AsyncClient:
        """A client that sends this key."""
        return client_of(self.services, key)

    async def new_key(self, account: str, **fields: Any) -> tuple[str, str]:
        """The text and the id of a new key of an account that exists."""
        response = await self.admin.post(f"/v1/admin/accounts/{account}/keys", json={"name": "key", **fields})
        assert response.status_code == 201, response.text
        return response.json()["key"], response.json()["id"]


def client_of(services: Services, key: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(create_api(services)),
        base_url="http://test",
        headers={"Authorization": f"Bearer {key}"},
    )


@asynccontextmanager
async def running_service(
    database_url: str, *, limits: LimitsConfig | None = None, billing: BillingConfig | None = None, **parts: Any
) -> AsyncIterator[Service]:
    """`parts` are those of `make_services`. Accounts, made where missing: `operator`, whose key administers; `acme`."""
    async with open_database(database_url) as database:
        plain = make_services(limits=limits, billing=billing, **parts)
        rules = Rules(make_prices(plain.config.billing), make_limits(plain.config.limits))
        admission = Admission(SqlAdmissionStore(database), rules, owner=OWNER)
        await SqlOwners(database).beat(OWNER, 1e12)
        tuned_models = TunedModels(SqlTunedModels(database))
        models = Models(plain.models.catalog, tuned_models)
        services = replace(
            plain,
            models=models,
            tuned_models=tuned_models,
            admission=admission,
            generation=TextGeneration(plain.graph, models, admission),
            accounts=Accounts(SqlAccountStore(database)),
            keys=Keys(SqlKeyStore(database), PEPPER),
            usage=SqlUsageReports(database),
            audit=SqlAuditLog(database),
            idempotency=IdempotentRuns(SealedAnswers(SqlIdempotentRequests(database, OWNER), PEPPER)),
        )
        for account in ("operator", "acme"):
            await services.accounts.ensure(account, actor="test")
        all_scopes = KeyGrant(scopes=frozenset(Scope))
        admin_key, _ = await services.keys.create("operator", "admin", actor="test", grant=all_scopes)
        client_key, _ = await services.keys.create("acme", "client", actor="test")
        async with client_of(services, admin_key) as admin, client_of(services, client_key) as client:
            yield Service(services, admin, admin_key, client, client_key)
        await admission.drain()
