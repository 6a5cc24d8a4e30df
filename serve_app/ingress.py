"""The ingress deployment: the HTTP side in a Serve replica, with the graph behind its handles."""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from secrets import token_hex

import ray
from ray import serve
from ray.serve import Application
from ray.serve.schema import DeploymentStatusOverview
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.checkpoints.opening import open_artifacts
from deployments.near_tokenizer import nearest
from deployments.ray_graph import Handle, connect_graph
from deployments.ray_logging import log_as_serve
from deployments.ray_meter import RayMeter
from serve_app.api import create_api
from serve_app.config import AppConfig, Secrets
from serve_app.dispatcher import DISPATCHER, DispatcherClient
from serve_app.ledger.billing import make_prices
from serve_app.services import Services
from serve_app.stores.accounts import SqlAccountStore
from serve_app.stores.admission import SqlAdmissionStore
from serve_app.stores.audit import SqlAuditLog
from serve_app.stores.database import open_database, require_reach
from serve_app.stores.idempotency import SqlIdempotentRequests
from serve_app.stores.jobs import SqlJobs
from serve_app.stores.keys import SqlKeyStore
from serve_app.stores.owners import SqlOwners
from serve_app.stores.training_files import SqlTrainingFiles
from serve_app.stores.tuned_models import SqlTunedModels
from serve_app.stores.usage import SqlUsageReports
from serve_app.stores.webhooks import SqlWebhooks
from serve_app.use_cases.accounts import Accounts
from serve_app.use_cases.admission import Admission, Rules, make_limits
from serve_app.use_cases.chores import Chore, repeating
from serve_app.use_cases.document_training import DocumentTraining
from serve_app.use_cases.fine_tuning import FineTuning
from serve_app.use_cases.generate import TextGeneration
from serve_app.use_cases.idempotency import SealedAnswers
from serve_app.use_cases.idempotent_runs import IdempotentRuns
from serve_app.use_cases.keys import Keys
from serve_app.use_cases.ledger_upkeep import LedgerUpkeep
from serve_app.use_cases.models import ModelCatalog, Models
from serve_app.use_cases.readiness import Readiness
from serve_app.use_cases.training_files import TrainingFiles
from serve_app.use_cases.tuned_models import TunedModels
from serve_app.use_cases.webhook_secrets import SealedSecrets
from serve_app.use_cases.webhooks import Webhooks

INGRESS = "Ingress"

_LAST_USED_S = 60.0
_DELETE_EXPIRED_S = 600.0
_MEASURE_S = 5.0


class Ingress:
    """Serve builds the HTTP application in the replica, once the constructor has made what it needs."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: AppConfig, tokenizer: Handle, generators: Mapping[str, Handle], dispatcher: Handle
    ) -> None:
        log_as_serve()
        meter = RayMeter()
        secrets = Secrets.load()
        self._resources = AsyncExitStack()
        database_url = secrets.database_url(config)
        require_reach(database_url, num_nodes())
        database = await self._resources.enter_async_context(open_database(database_url))
        # A name that no other process has, nor had.
        owner = token_hex(16)
        ledger = SqlAdmissionStore(database)
        rules = Rules(make_prices(config.billing), make_limits(config.limits))
        admission = Admission(ledger, rules, owner=owner, meter=meter)
        upkeep = LedgerUpkeep(admission, ledger, SqlOwners(database), rules.prices, owner=owner)
        await self._resources.enter_async_context(upkeep.running())
        keys = Keys(SqlKeyStore(database), secrets.pepper())
        answers = SqlIdempotentRequests(database, owner)
        chores = (
            Chore("noting when keys were used", keys.save_last_used, _LAST_USED_S),
            Chore("deleting old answers", answers.delete_expired, _DELETE_EXPIRED_S),
            Chore("measuring reservations", admission.measure, _MEASURE_S),
        )
        await self._resources.enter_async_context(repeating(*chores))
        connected = connect_graph(config.graph, tokenizer, generators, meter)
        graph = replace(connected, tokenizer=await nearest(config.graph, connected.tokenizer))
        tuned_models = TunedModels(SqlTunedModels(database))
        catalog = ModelCatalog(config.graph.models)
        models = Models(catalog, tuned_models)
        artifacts = await asyncio.to_thread(open_artifacts, config.graph.checkpoints, secrets.home)
        files = TrainingFiles(SqlTrainingFiles(database), artifacts, config.fine_tuning)
        self._resources.callback(files.close)
        nudge = DispatcherClient(dispatcher).nudge
        # Thousands of short documents are as much work as a long one.
        counting = connected.tokenizer
        fine_tuning = FineTuning(SqlJobs(database), files, catalog, counting, config.fine_tuning, nudge=nudge)
        self._resources.push_async_callback(fine_tuning.close)
        readiness = Readiness(partial(ask_serve, serve.get_replica_context().app_name))
        self._resources.callback(readiness.close)
        webhooks = Webhooks(SqlWebhooks(database), SealedSecrets(secrets.pepper()), config.webhooks, nudge=nudge)
        self._services = Services(
            config=config,
            graph=graph,
            models=models,
            tuned_models=tuned_models,
            files=files,
            fine_tuning=fine_tuning,
            document_training=DocumentTraining(files, fine_tuning, config.fine_tuning),
            webhooks=webhooks,
            generation=TextGeneration(graph, models, admission, meter),
            accounts=Accounts(SqlAccountStore(database)),
            keys=keys,
            admission=admission,
            usage=SqlUsageReports(database),
            audit=SqlAuditLog(database),
            idempotency=IdempotentRuns(SealedAnswers(answers, secrets.pepper())),
            is_ready=readiness.is_ready,
        )

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return _without_request_id(create_api(self._services))

    async def __del__(self) -> None:  # Serve awaits it
        await self._resources.aclose()


def bind_ingress(
    config: AppConfig, tokenizer: Application, generators: Mapping[str, Application], dispatcher: Application
) -> Application:
    """The application whose requests the ingress answers by calling these nodes."""
    deployment = serve.deployment(
        serve.ingress()(Ingress),
        name=INGRESS,
        max_ongoing_requests=1024,
        health_check_period_s=2,
        health_check_timeout_s=30,
        graceful_shutdown_wait_loop_s=1,
        graceful_shutdown_timeout_s=config.longest_answer_s,
    )
    return deployment.bind(config, tokenizer, dict(generators), dispatcher)


def _without_request_id(app: ASGIApp) -> ASGIApp:
    """The application without its header `x-request-id`: Serve adds the same one to every answer."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["x-request-id"]
            await send(message)

        await app(scope, receive, send_without)

    return answer


def num_nodes() -> int:
    """How many machines the cluster has at this moment."""
    return sum(bool(node["Alive"]) for node in ray.nodes())


def ask_serve(app_name: str) -> bool:
    """Whether every deployment that an answer needs can answer. Asks Serve, so that no sleeping replica is woken.

    Blocks while Serve's controller is away. Raises LookupError where it does not know the application.
    """
    application = serve.status().applications.get(app_name)
    if application is None:
        raise LookupError(f"Serve's controller knows no application {app_name!r}")
    # Jobs and webhooks are taken in while no dispatcher runs; they wait.
    return all(can_answer(deployment) for name, deployment in application.deployments.items() if name != DISPATCHER)


def can_answer(deployment: DeploymentStatusOverview) -> bool:
    """A running replica, or one that comes on a call: a deployment that sleeps is healthy, one that wakes upscales.

    Were a waking model not ready, load balancers would take the whole service out for as long as that lasts. Replicas
    that a controller finds when it has been started anew are recovering to it until it has asked each of them.
    """
    runs = any(deployment.replica_states.get(state, 0) > 0 for state in ("RUNNING", "RECOVERING"))
    return runs or deployment.status in ("HEALTHY", "UPSCALING")
