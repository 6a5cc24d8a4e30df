"""The graph on Ray Serve: deployments around the plain node classes, and typed clients over their handles.

The one module of the model side that knows Ray. Knows no HTTP.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
from ray import serve
from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError
from ray.serve import Application
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from deployments.autoscaling import report
from deployments.config import AdapterCacheConfig, CheckpointConfig, GraphConfig, ModelConfig
from deployments.continuing import MAX_LOSSES, ContinuingGenerator
from deployments.errors import EngineDead, EngineError, EngineStuck, Overloaded, ReplicaLost
from deployments.graph import Graph
from deployments.liveness import SILENCE_S, with_signs_of_life
from deployments.meter import Meter
from deployments.model_source import default_home
from deployments.otel_spans import OtelSpans
from deployments.ray_logging import log_as_serve
from deployments.ray_meter import RayMeter
from deployments.types import EncodeRequest, EncodeResult, GenerateChunk, GenerateRequest, GenerateResult

if TYPE_CHECKING:
    from deployments.generator_metrics import EngineReport

TOKENIZER = "Tokenizer"

# Bounds the calls that wait in one caller's process for a replica with room; more are refused as an overload. Half of
# what an ingress takes: those who wait for a model that cannot be woken must not keep out those of the others.
_MAX_QUEUED_CALLS = 512
_MAX_ONGOING_ENCODINGS = 64
_REPLICA_LOST_RETRY_S = 1.0
_REPORT_S = 1.0

_ROUTER = RequestRouterConfig(request_router_class="deployments.ray_router.LoadRouter")

Handle: TypeAlias = DeploymentHandle[Any]

logger = logging.getLogger(__name__)


def generator_name(model_id: str) -> str:
    """The deployment that serves this model: `Generator-<id>`.

    Characters that a deployment's name cannot hold become `-`; such a name ends with a digest of the id, so that
    two ids never share one.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]", "-", model_id)
    if safe != model_id:
        safe += "-" + hashlib.sha256(model_id.encode()).hexdigest()[:8]
    return f"Generator-{safe}"


def bind_graph(config: GraphConfig, *, longest_call_s: float) -> tuple[Application, dict[str, Application]]:
    """The tokenizer and the generator of each model id, ready to be given to the deployment that calls them.

    Replica counts, autoscaling and resources belong to the `deployments:` section of the Serve config file.
    A replica that is told to stop has `longest_call_s` to finish the calls that it has accepted.
    """
    shared = {
        "max_queued_requests": _MAX_QUEUED_CALLS,
        "health_check_period_s": 2,
        "health_check_timeout_s": 30,
        "graceful_shutdown_wait_loop_s": 1,
        "graceful_shutdown_timeout_s": longest_call_s,
    }
    tokenizer = serve.deployment(
        TokenizerReplica,
        name=TOKENIZER,
        max_ongoing_requests=_MAX_ONGOING_ENCODINGS,
        request_router_config=_ROUTER,
        **shared,
    ).bind(config)
    generators = {
        model.id: serve.deployment(
            GeneratorReplica,
            name=generator_name(model.id),
            # The engine bounds what it runs and queues, and answers what is too much: let it decide.
            max_ongoing_requests=model.engine.max_num_seqs + model.engine.max_queued_sequences + 1,
            request_router_config=_router_of(model),
            **shared,
        ).bind(model, config.adapters, config.checkpoints)
        for model in config.models
    }
    return tokenizer, generators


def _router_of(model: ModelConfig) -> RequestRouterConfig:
    """How callers choose among the replicas of the model's generator."""
    if model.routing == "load":
        return _ROUTER
    return RequestRouterConfig(
        request_router_class="deployments.ray_router.AffinityRouter",
        request_router_kwargs={
            "block_size": model.engine.block_size,
            "shares_prefixes": model.engine.enable_prefix_reuse,
        },
    )


def connect_graph(
    config: GraphConfig, tokenizer: Handle, generators: Mapping[str, Handle], meter: Meter | None = None
) -> Graph:
    """The graph as its callers see it, over the handles that Serve makes of what `bind_graph` returned."""
    wait_s = config.replica_wait_s
    return Graph(
        tokenizer=RayTokenizer(tokenizer, wait_s),
        generators={
            model_id: ContinuingGenerator(RayGenerator(handle, wait_s), meter)
            for model_id, handle in generators.items()
        },
    )


class TokenizerReplica:
    """Serve's shell around the tokenizer node. Every method yields its one answer: see `_call`."""

    async def __init__(self, config: GraphConfig) -> None:  # type: ignore[misc]  # Serve awaits it
        log_as_serve()
        # Imported here, so that the processes that only compose or call the graph do not load what the nodes need.
        from deployments.tokenizer import TokenizerNode

        self._node = TokenizerNode(config, default_home())
        await self._node.start()

    async def check_health(self) -> None:
        """Called by Serve, which replaces a replica that raises."""
        await self._node.check_health()

    async def encode(self, request: EncodeRequest) -> AsyncGenerator[EncodeResult, None]:
        yield await self._node.encode(request)

    async def decode(
        self, model: str, token_ids: tuple[int, ...], *, skip_special_tokens: bool
    ) -> AsyncGenerator[str, None]:
        yield await self._node.decode(model, token_ids, skip_special_tokens=skip_special_tokens)

    async def token_texts(self, model: str, token_ids: tuple[int, ...]) -> AsyncGenerator[tuple[str, ...], None]:
        yield await self._node.token_texts(model, token_ids)

    async def count(self, model: str, texts: tuple[str, ...]) -> AsyncGenerator[tuple[int, ...], None]:
        yield await self._node.count(model, texts)


class GeneratorReplica:
    """Serve's shell around a generator node: not ready before its model is."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, model: ModelConfig, adapters: AdapterCacheConfig, checkpoints: CheckpointConfig
    ) -> None:
        log_as_serve()
        began_at = time.monotonic()
        from deployments.generator import GeneratorNode
        from deployments.generator_metrics import EngineReport

        imports_s = time.monotonic() - began_at
        meter = RayMeter()
        self._node = GeneratorNode(
            model, default_home(), adapters=adapters, checkpoints=checkpoints, meter=meter, spans=OtelSpans()
        )
        self._node.phases.add("imports", imports_s)
        self._reporting: asyncio.Task[None] | None = None
        await self._node.start()
        report = EngineReport(meter, model.id, self._node.phases.seconds)
        self._reporting = asyncio.create_task(self._keep_reporting(report))

    async def _keep_reporting(self, to: "EngineReport") -> None:
        while True:
            to.report(self._node.stats())
            await asyncio.sleep(_REPORT_S)

    @with_signs_of_life
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateResult, None]:
        yield await self._node.generate(request)

    @with_signs_of_life
    def stream(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        return self._node.stream(request)

    async def stats(self) -> AsyncGenerator[Any, None]:
        yield self._node.stats()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve for the autoscaling policy."""
        return report(self._node.stats())

    async def health(self) -> AsyncGenerator[bool, None]:
        await self._node.check_health()
        yield True

    async def check_health(self) -> None:
        """Called by Serve, which replaces a replica that raises, but lets it end its calls first."""
        try:
            await self._node.check_health()
        except EngineStuck as error:
            # Those calls never end, and nothing can end the step but the end of the process.
            logger.critical("the replica ends itself: %s", error.message)
            os._exit(1)

    async def __del__(self) -> None:  # Serve awaits it
        if self._reporting is not None:
            self._reporting.cancel()
        await self._node.stop()


class RayTokenizer:
    """`deployments.graph.Tokenizer` over the handle of the tokenizer deployment.

    A call that loses its replica is made again: what it asks for is the same everywhere, and quick.
    """

    def __init__(self, handle: Handle, replica_wait_s: float) -> None:
        self._encode = handle.options(method_name="encode", stream=True)
        self._decode = handle.options(method_name="decode", stream=True)
        self._token_texts = handle.options(method_name="token_texts", stream=True)
        self._count = handle.options(method_name="count", stream=True)
        self._replica_wait_s = replica_wait_s

    async def encode(self, request: EncodeRequest) -> EncodeResult:
        result: EncodeResult = await self._ask(self._encode, request)
        return result

    async def decode(self, model: str, token_ids: tuple[int, ...], *, skip_special_tokens: bool = False) -> str:
        text: str = await self._ask(self._decode, model, token_ids, skip_special_tokens=skip_special_tokens)
        return text

    async def token_texts(self, model: str, token_ids: tuple[int, ...]) -> tuple[str, ...]:
        texts: tuple[str, ...] = await self._ask(self._token_texts, model, token_ids)
        return texts

    async def count(self, model: str, texts: tuple[str, ...]) -> tuple[int, ...]:
        counts: tuple[int, ...] = await self._ask(self._count, model, texts)
        return counts

    async def _ask(self, handle: Handle, *args: Any, **kwargs: Any) -> Any:
        for _ in range(MAX_LOSSES - 1):
            with contextlib.suppress(ReplicaLost):
                return await _call(handle, self._replica_wait_s, *args, **kwargs)
        return await _call(handle, self._replica_wait_s, *args, **kwargs)


class RayGenerator:
    """`deployments.graph.Generator` over the handle of one model's deployment.

    A call that loses its replica raises ReplicaLost.
    """

    def __init__(self, handle: Handle, replica_wait_s: float) -> None:
        self._generate = handle.options(method_name="generate", stream=True)
        self._stream = handle.options(method_name="stream", stream=True)
        self._health = handle.options(method_name="health", stream=True)
        self._replica_wait_s = replica_wait_s

    async def generate(self, request: GenerateRequest) -> GenerateResult:
        result: GenerateResult = await _call(self._generate, self._replica_wait_s, request)
        return result

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        async with aclosing(_call_stream(self._stream, self._replica_wait_s, request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def check_health(self) -> None:
        await _call(self._health, self._replica_wait_s)


async def _call(handle: Handle, replica_wait_s: float, *args: Any, **kwargs: Any) -> Any:
    """The one answer of a replica's method, in one message.

    It travels as a stream of one item: only for streams does Serve tell, on every transport, when a replica has
    accepted the call, and it is the waiting for this that must be bounded.
    """
    async with aclosing(_call_stream(handle, replica_wait_s, *args, **kwargs)) as answers:
        return await anext(answers)


async def _call_stream(handle: Handle, replica_wait_s: float, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
    """What a replica's method yields, but for signs of life (None), without which it counts as lost. Closing the
    iterator cancels the method. Raises what `service_error` returns."""
    response: DeploymentResponseGenerator[Any] = handle.remote(*args, **kwargs)
    is_finished = False
    try:
        # Serve itself waits without limit while no replica has room.
        try:
            async with asyncio.timeout(replica_wait_s):  # `wait_for` would swallow a cancellation that races with it
                await response._fetch_future_result_async()
        except TimeoutError:
            raise Overloaded(f"no replica had room for the request within {replica_wait_s:g} s") from None
        items = aiter(response)
        while not is_finished:
            try:
                async with asyncio.timeout(SILENCE_S) as silence:
                    item = await anext(items)
            except StopAsyncIteration:
                is_finished = True
            except TimeoutError:
                if silence.expired():
                    raise _replica_lost() from None
                raise
            else:
                if item is not None:
                    yield item
    except Exception as error:
        raise service_error(error) from error
    finally:
        if not is_finished:
            _cancel(response)


def _cancel(response: DeploymentResponseGenerator[Any]) -> None:
    """Ends the call at the replica."""
    future = response._replica_result_future
    response.cancel()
    # Where router and caller share an event loop, `cancel` forgets a call that was accepted in this very moment.
    if future.done() and not future.cancelled() and future.exception() is None:
        future.result().cancel()


def service_error(error: BaseException) -> BaseException:
    """What a failed call means to its caller: the one place where Ray's errors end.

    An error that the node raised is given back as it was raised there; a lost replica, or one whose engine is dead, is
    ReplicaLost, a missing one Overloaded.
    """
    if isinstance(error, RayTaskError):
        cause = error.cause
        is_lost = isinstance(cause, asyncio.CancelledError | TaskCancelledError | EngineDead)
        return _replica_lost() if is_lost else cause
    # Over gRPC an error of the node comes as it is.
    if isinstance(error, EngineDead | RayActorError | ReplicaUnavailableError | TaskCancelledError):
        return _replica_lost()
    if isinstance(error, BackPressureError):
        return Overloaded("too many requests wait for a replica")
    if isinstance(error, DeploymentUnavailableError):
        return Overloaded("no replica could be started; the operator finds the reason in `serve status`", 30.0)
    if isinstance(error, grpc.aio.AioRpcError):
        if error.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE):
            return _replica_lost()
        return EngineError(f"the call of the replica failed ({error.code().name})")
    return error


def _replica_lost() -> ReplicaLost:
    return ReplicaLost("the replica that worked on the request was lost; send it again", _REPLICA_LOST_RETRY_S)
