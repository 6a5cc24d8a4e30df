"""Services over a real SQLite database and fake models, with an administrator, for tests of the administration."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from deployments.checkpoints.opening import open_artifacts
from deployments.config import CheckpointConfig
from deployments.graph import FineTuner
from serve_app.api import create_api
from serve_app.config import BillingConfig, LimitsConfig
from serve_app.ledger.billing import make_prices
from serve_app.services import Services
from serve_app.stores.accounts import SqlAccountStore
from serve_app.stores.admission import SqlAdmissionStore
from serve_app.stores.audit import SqlAuditLog
from serve_app.stores.database import open_database
from serve_app.stores.idempotency import SqlIdempotentRequests
from serve_app.stores.job_queue import SqlJobQueue
from serve_app.stores.jobs import SqlJobs
from serve_app.stores.keys import SqlKeyStore
from serve_app.stores.owners import SqlOwners
from serve_app.stores.training_files import SqlTrainingFiles
from serve_app.stores.tuned_models import SqlTunedModels
from serve_app.stores.usage import SqlUsageReports
from serve_app.stores.webhooks import SqlWebhooks
from serve_app.use_cases.accounts import Accounts
from serve_app.use_cases.admission import Admission, Rules, make_limits
from serve_app.use_cases.callers import Scope
from serve_app.use_cases.dispatch import Dispatcher
from serve_app.use_cases.document_training import DocumentTraining
from serve_app.use_cases.fine_tuning import FineTuning
from serve_app.use_cases.generate import TextGeneration
from serve_app.use_cases.idempotency import SealedAnswers
from serve_app.use_cases.idempotent_runs import IdempotentRuns
from serve_app.use_cases.key_records import KeyGrant
from serve_app.use_cases.keys import Keys
from serve_app.use_cases.models import Models
from serve_app.use_cases.training_files import TrainingFiles
from serve_app.use_cases.tuned_models import TunedModels
from serve_app.use_cases.webhook_secrets import SealedSecrets
from serve_app.use_cases.webhooks import Webhooks
from tests.api.conftest import make_services
from tests.fake_fine_tuner import FakeFineTuner

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
    database_url: str,
    *,
    limits: LimitsConfig | None = None,
    billing: BillingConfig | None = None,
    fine_tuner: FineTuner | None = None,
    **parts: Any,
) -> AsyncIterator[Service]:
    """`parts` are those of `make_services`. Accounts, made where missing: `operator`, whose key administers; `acme`.

    fine_tuner: a dispatcher lets it work on the jobs; without one they wait for ever. Training data lies in files.
    """
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(database_url))
        plain = make_services(limits=limits, billing=billing, **parts)
        config = plain.config.fine_tuning
        rules = Rules(make_prices(plain.config.billing), make_limits(plain.config.limits))
        admission = Admission(SqlAdmissionStore(database), rules, owner=OWNER)
        await SqlOwners(database).beat(OWNER, 1e12)
        tuned_models = TunedModels(SqlTunedModels(database))
        models = Models(plain.models.catalog, tuned_models)
        home = stack.enter_context(TemporaryDirectory())
        files = TrainingFiles(SqlTrainingFiles(database), open_artifacts(CheckpointConfig(), Path(home)), config)
        queue = SqlJobQueue(database, config)
        dispatcher = Dispatcher(queue, fine_tuner or FakeFineTuner(), config, worker="test")
        fine_tuning = FineTuning(
            SqlJobs(database), files, models.catalog, plain.graph.tokenizer, config, nudge=dispatcher.nudge
        )
        stack.push_async_callback(fine_tuning.close)
        if fine_tuner is not None:
            await stack.enter_async_context(dispatcher.running())
        services = replace(
            plain,
            models=models,
            tuned_models=tuned_models,
            files=files,
            fine_tuning=fine_tuning,
            document_training=DocumentTraining(files, fine_tuning, config),
            webhooks=Webhooks(SqlWebhooks(database), SealedSecrets(PEPPER), plain.config.webhooks),
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
        admin = await stack.enter_async_context(client_of(services, admin_key))
        client = await stack.enter_async_context(client_of(services, client_key))
        yield Service(services, admin, admin_key, client, client_key)
        await admission.drain()
