"""Several replicas of one model's generator on a Ray Serve of this machine, and what their engines have done."""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from ray import serve

from deployments.config import GraphConfig
from deployments.continuing import ContinuingGenerator
from deployments.engine.protocol import EngineStats
from deployments.graph import Generator
from deployments.ray_graph import GeneratorReplica, Handle, RayGenerator, bind_graph

_WAIT_S = 120.0


class MeasuredReplica(GeneratorReplica):
    """Also tells its process and what its engine has done."""

    async def snapshot(self) -> tuple[int, EngineStats]:
        return os.getpid(), self._node.stats()


@dataclass(frozen=True, slots=True)
class Generators:
    """The replicas of the first model. client: as the ingress calls them."""

    client: Generator
    handle: Handle

    async def snapshots(self) -> dict[int, EngineStats]:
        """Of every replica that answers, by its process id."""
        return dict(await self.handle.broadcast("snapshot").results_async(timeout_s=_WAIT_S))

    async def busy_since(self, before: dict[int, EngineStats]) -> set[int]:
        """The processes that have begun sequences since then."""
        return {
            pid
            for pid, stats in (await self.snapshots()).items()
            if pid not in before or stats.totals.prompt_tokens > before[pid].totals.prompt_tokens
        }


@asynccontextmanager
async def start_generators(
    config: GraphConfig, num_replicas: int, replica: type[MeasuredReplica] = MeasuredReplica
) -> AsyncGenerator[Generators, None]:
    """On the Ray that this process is connected to. Ends Serve when the context is left."""
    await asyncio.to_thread(serve.start, proxy_location="Disabled")
    _, generators = bind_graph(config, longest_call_s=10)
    bound = generators[config.models[0].id]._bound_deployment
    deployment = bound.options(replica, num_replicas=num_replicas, ray_actor_options={"num_cpus": 0.1})
    application = deployment.bind(*bound.init_args)
    try:
        handle = await asyncio.to_thread(serve.run, application, name="load", route_prefix=None)
        yield Generators(ContinuingGenerator(RayGenerator(handle, _WAIT_S)), handle)
    finally:
        await asyncio.to_thread(serve.shutdown)
