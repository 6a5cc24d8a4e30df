"""The dispatcher deployment: runs fine-tuning jobs on Ray, delivers webhooks, and lets go of what nothing needs."""

import asyncio
import logging
from contextlib import AsyncExitStack
from secrets import token_hex

from ray import serve
from ray.serve import Application

from deployments.checkpoints.artifacts import ArtifactStore
from deployments.checkpoints.opening import open_artifacts
from deployments.checkpoints.probe import probe
from deployments.errors import ObjectStoreError
from deployments.ray_fine_tuner import MakeNode, RayFineTuner, make_node
from deployments.ray_graph import Handle
from deployments.ray_logging import log_as_serve
from deployments.ray_meter import RayMeter
from serve_app.config import AppConfig, Secrets
from serve_app.stores.backlog import SqlBacklog
from serve_app.stores.database import open_database
from serve_app.stores.job_queue import SqlJobQueue
from serve_app.stores.retention import SqlRetention
from serve_app.stores.webhook_queue import SqlOutbox
from serve_app.use_cases.backlog import BacklogReport
from serve_app.use_cases.chores import Chore, repeating
from serve_app.use_cases.dispatch import Dispatcher
from serve_app.use_cases.retention import Retention
from serve_app.use_cases.webhook_delivery import WebhookDelivery
from serve_app.use_cases.webhook_secrets import SealedSecrets
from serve_app.use_cases.webhooks import address_rules
from serve_app.webhook_sender import HttpSender, system_resolver

DISPATCHER = "Dispatcher"

_COLLECT_S = 300.0
"""How often each dispatcher asks whether it is its turn to collect garbage."""
_MEASURE_S = 5.0
_NUDGE_S = 5.0
"""How long a nudge may take to find a dispatcher; those that are not nudged look by themselves."""
_SHUTDOWN_S = 30.0

logger = logging.getLogger(__name__)


class DispatcherReplica:
    """Any number of them share the jobs and the deliveries of one database. make_node: what trains."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: AppConfig, make_node: MakeNode = make_node
    ) -> None:
        log_as_serve()
        meter = RayMeter()
        secrets = Secrets.load()
        self._resources = AsyncExitStack()
        enter = self._resources.enter_async_context
        database = await enter(open_database(secrets.database_url(config)))
        rules = address_rules(config.webhooks)
        sender = HttpSender(rules, await enter(system_resolver()), timeout_s=config.webhooks.timeout_s)
        self._delivery = WebhookDelivery(
            SqlOutbox(database), sender, SealedSecrets(secrets.pepper()), config.webhooks, meter=meter
        )
        await enter(self._delivery.running())
        artifacts = open_artifacts(config.graph.checkpoints, secrets.home)
        await _probe(artifacts)
        retention = Retention(SqlRetention(database), artifacts, config.fine_tuning)
        backlog = BacklogReport(SqlBacklog(database), meter)
        chores = (
            Chore("collecting garbage", retention.collect, _COLLECT_S),
            Chore("measuring what waits", backlog.measure, _MEASURE_S),
        )
        await enter(repeating(*chores))
        self._dispatcher = Dispatcher(
            SqlJobQueue(database, config.fine_tuning),
            RayFineTuner(config.graph, make_node=make_node),
            config.fine_tuning,
            worker=token_hex(16),
            on_end=self._delivery.nudge,
            meter=meter,
        )
        await enter(self._dispatcher.running())

    async def nudge(self) -> None:
        """There may be a job to start or to stop, or a webhook to deliver."""
        self._dispatcher.nudge()
        self._delivery.nudge()

    async def check_health(self) -> None:
        """Called by Serve, which replaces a replica that raises."""
        self._dispatcher.check_health()

    async def __del__(self) -> None:  # Serve awaits it
        await self._resources.aclose()


async def _probe(artifacts: ArtifactStore) -> None:
    """Raises UnusableStore. A store that does not answer may do so later: what needs it waits."""
    try:
        await asyncio.to_thread(probe, artifacts)
    except ObjectStoreError as error:
        logger.warning("the object store could not be tried: %s", error)


class DispatcherClient:
    """Tells dispatchers over their handle that there is something new."""

    def __init__(self, handle: Handle) -> None:
        self._nudge = handle.options(method_name="nudge")
        self._nudges: set[asyncio.Task[None]] = set()

    def nudge(self) -> None:
        """Returns at once. A dispatcher that is not reached finds what is new a second later by itself."""
        task = asyncio.get_running_loop().create_task(self._send())
        self._nudges.add(task)
        task.add_done_callback(self._nudges.discard)

    async def _send(self) -> None:
        response = self._nudge.remote()
        try:
            async with asyncio.timeout(_NUDGE_S):
                await response
        except Exception as error:
            response.cancel()
            logger.debug("no dispatcher was nudged: %s", type(error).__name__)


def bind_dispatcher(config: AppConfig) -> Application:
    """Replica counts and resources belong to the `deployments:` section of the Serve config file."""
    deployment = serve.deployment(
        DispatcherReplica,
        name=DISPATCHER,
        max_ongoing_requests=64,
        health_check_period_s=2,
        health_check_timeout_s=30,
        graceful_shutdown_wait_loop_s=1,
        graceful_shutdown_timeout_s=_SHUTDOWN_S,
    )
    return deployment.bind(config)
