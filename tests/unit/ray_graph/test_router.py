"""Serve's request router for generators, with replicas that only say how busy they are."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from ray import ActorID
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID, RequestMetadata
from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import PendingRequest

from deployments.config import EngineConfig, GraphConfig, ModelConfig
from deployments.ray_graph import bind_graph
from deployments.ray_router import AffinityRouter, LoadRouter
from deployments.types import GenerateRequest, SamplingParams

DEPLOYMENT = DeploymentID("Generator-tiny", "tritext")
MAX_ONGOING = 10


@dataclass(eq=False)
class FakeReplica:
    """What a router asks of a replica. length: of its queue, or the error with which it answers. gate: before which
    it does not."""

    name: str
    length: int | Exception = 0
    max_ongoing_requests: int = MAX_ONGOING
    node_id: str = "node"
    availability_zone: str | None = None
    multiplexed_model_ids: set[str] = field(default_factory=set)
    num_probes: int = 0
    gate: asyncio.Event | None = None

    @property
    def replica_id(self) -> ReplicaID:
        return ReplicaID(self.name, DEPLOYMENT)

    async def get_queue_len(self, *, deadline_s: float) -> int:  # noqa: ARG002
        self.num_probes += 1
        if self.gate is not None:
            await self.gate.wait()
        if isinstance(self.length, Exception):
            raise self.length
        return self.length


@dataclass
class ReplicaInfo:
    """What Serve knows of a replica, as far as its wrapper asks."""

    port: int
    node_ip: str = "127.0.0.1"
    multiplexed_model_ids: Sequence[str] = ()
    is_cross_language: bool = False

    def get_actor_handle(self) -> SimpleNamespace:
        return SimpleNamespace(_actor_id=ActorID.nil())


class Caller:
    """Sends requests as Serve's router does, to replicas that never end one."""

    def __init__(self, *replicas: FakeReplica, make_router: Callable[..., LoadRouter] = AffinityRouter) -> None:
        self.router = make_router(
            deployment_id=DEPLOYMENT,
            handle_source=DeploymentHandleSource.REPLICA,
            use_replica_queue_len_cache=True,
            initial_backoff_s=0.001,
            max_backoff_s=0.001,
        )
        self.router.queue_len_response_deadline_s = 30  # a pause of this machine is no silence of a replica
        if isinstance(self.router, AffinityRouter):
            self.router.initialize_state(**router_of().request_router_kwargs)
        self.router.update_replicas(list(replicas))

    async def send(self, *arguments: Any) -> str:
        """The name of the replica that it went to. All calls have the same ids, as those of one HTTP request."""
        metadata = RequestMetadata(request_id="r", internal_request_id="r")
        pending_request = PendingRequest(args=list(arguments), kwargs={}, metadata=metadata)
        replica = await self.router._choose_replica_for_request(pending_request)
        self.router.on_send_request(replica.replica_id)
        replica.length += 1
        await asyncio.sleep(0)
        self.router.on_request_routed(pending_request, replica.replica_id, None)
        return str(replica.name)


def make_replicas(number: int = 3) -> list[FakeReplica]:
    return [FakeReplica(f"replica-{index}") for index in range(number)]


def make_request(number: int = 0, num_tokens: int = 200) -> GenerateRequest:
    return GenerateRequest("r", "tiny", (number,) * num_tokens, SamplingParams())


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        await asyncio.sleep(0)


async def homes(requests: Sequence[GenerateRequest]) -> list[str]:
    """Where each of them goes when all replicas are idle."""
    return [await Caller(*make_replicas()).send(request) for request in requests]


def router_of(**changes: Any) -> RequestRouterConfig:
    """How the deployment of a model with these settings is asked for."""
    model = ModelConfig(id="tiny", source="/nowhere", **changes)
    _, generators = bind_graph(GraphConfig(models=(model,)), longest_call_s=1)
    config = generators["tiny"]._bound_deployment._deployment_config.request_router_config
    assert isinstance(config, RequestRouterConfig)
    return config


async def test_generators_prefer_replicas_unless_the_less_busy_is_wanted() -> None:
    config = router_of(engine=EngineConfig(block_size=32, enable_prefix_reuse=False))
    assert config.request_router_class == "deployments.ray_router.AffinityRouter"
    assert config.request_router_kwargs == {"block_size": 32, "shares_prefixes": False}
    assert router_of(routing="load").request_router_class == "deployments.ray_router.LoadRouter"


@pytest.mark.parametrize("router_class", [LoadRouter, AffinityRouter])
async def test_replica_that_does_not_say_whether_it_takes_a_request_is_unavailable(
    router_class: type[LoadRouter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is when its machine has vanished; Serve then chooses again."""
    monkeypatch.setattr("deployments.ray_router.SILENCE_S", 0.05)
    metadata = RequestMetadata(request_id="r", internal_request_id="r", is_streaming=True, _by_reference=False)
    request = PendingRequest(args=[], kwargs={}, metadata=metadata)
    connected: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()
    async with await asyncio.start_server(lambda _, writer: connected.set_result(writer), "127.0.0.1", 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        replica = Caller(make_router=router_class).router.create_replica_wrapper(ReplicaInfo(port))
        result = replica.try_send_request(request, with_rejection=True)
        with pytest.raises(ActorUnavailableError):
            await result.get_rejection_response()
        assert result._call.cancelled()
        connection = await connected  # which may be after the call has been given up
        silent.close()
        connection.close()
        await connection.wait_closed()


async def test_router_works_as_serve_brings_it_to_other_processes() -> None:
    config = router_of()
    request = make_request()
    [home] = await homes([request])
    caller = Caller(*make_replicas(), make_router=config.get_request_router_class())
    assert [await caller.send(request) for _ in range(2)] == [home, home]


async def test_request_goes_to_its_replica_again() -> None:
    requests = [make_request(number) for number in range(12)]
    first = await homes(requests)
    assert await homes(requests) == first
    assert len(set(first)) == 3


async def test_replica_is_for_the_request_that_it_was_chosen_for() -> None:
    """Though another one waits longer: its replica takes its time to say how busy it is."""
    first, *others = [make_request(number) for number in range(12)]
    slow, *homes_of_others = await homes([first, *others])
    second = next(request for request, home in zip(others, homes_of_others, strict=True) if home != slow)
    replicas = make_replicas()
    gate = asyncio.Event()
    next(replica for replica in replicas if replica.name == slow).gate = gate
    caller = Caller(*replicas)
    await until(lambda: all(replica.num_probes for replica in replicas))
    calls = [asyncio.create_task(caller.send(request)) for request in (first, second)]
    assert await calls[1] != slow
    gate.set()
    assert await calls[0] == slow


async def test_conversation_stays_where_it_had_to_go() -> None:
    request = make_request()
    [home] = await homes([request])
    caller = Caller(*make_replicas())
    await caller.send(make_request(1))
    caller.router.on_new_queue_len_info(ReplicaID(home, DEPLOYMENT), MAX_ONGOING - 1)
    elsewhere = await caller.send(request)
    assert elsewhere != home
    caller.router.on_new_queue_len_info(ReplicaID(home, DEPLOYMENT), 0)
    assert await caller.send(make_request(num_tokens=300)) == elsewhere


async def test_burst_of_one_beginning_is_counted_before_it_is_sent() -> None:
    caller = Caller(*make_replicas())
    await caller.send(make_request(9, 300))  # so that the queues are known
    names = await asyncio.gather(*(caller.send(make_request()) for _ in range(18)))
    assert max(Counter(names).values()) <= 1.25 * 19 / 3 + 2


async def test_what_the_preferred_have_no_room_for_goes_to_another() -> None:
    [home] = await homes([make_request()])
    replicas = make_replicas()
    for replica in replicas:
        replica.length = MAX_ONGOING if replica.name == home else MAX_ONGOING - 2
    caller = Caller(*replicas)
    assert await caller.send(make_request()) != home


@pytest.mark.parametrize("error", [ActorDiedError(), TimeoutError()], ids=["dead", "silent"])
async def test_replica_that_does_not_answer_is_passed_over(error: Exception) -> None:
    replicas = make_replicas()
    for replica in replicas[1:]:
        replica.length = error
    caller = Caller(*replicas)
    names = {await caller.send(make_request(number)) for number in range(8)}
    assert names == {"replica-0"}


async def test_lost_replica_is_not_asked_again() -> None:
    [home] = await homes([make_request()])
    caller = Caller(*make_replicas())
    assert await caller.send(make_request()) == home
    caller.router.on_replica_actor_died(ReplicaID(home, DEPLOYMENT))
    assert {await caller.send(make_request()) for _ in range(5)}.isdisjoint({home})


async def test_calls_wait_while_all_are_full_and_go_on_when_one_has_room() -> None:
    replicas = make_replicas()
    for replica in replicas:
        replica.length = MAX_ONGOING
    caller = Caller(*replicas)
    calls = [asyncio.create_task(caller.send(request)) for request in (make_request(), make_request(1, 10))]
    await until(lambda: min(replica.num_probes for replica in replicas) > 3)
    assert not any(call.done() for call in calls)
    replicas[1].length = 0
    assert await asyncio.gather(*calls) == ["replica-1", "replica-1"]


async def test_call_that_was_given_up_leaves_the_others_alone() -> None:
    caller = Caller()
    calls = [asyncio.create_task(caller.send(make_request(number))) for number in range(4)]
    await asyncio.sleep(0)
    calls[1].cancel()
    await asyncio.sleep(0)
    caller.router.update_replicas(make_replicas())
    names = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(names.pop(1), asyncio.CancelledError)
    assert all(isinstance(name, str) for name in names)


async def test_replicas_that_come_are_used() -> None:
    requests = [make_request(number) for number in range(20)]
    caller = Caller(*make_replicas(2))
    before = [await caller.send(request) for request in requests[:8]]
    assert set(before) == {"replica-0", "replica-1"}
    caller.router.update_replicas(make_replicas(3))
    assert "replica-2" in {await caller.send(request) for request in requests[8:]}


async def test_other_calls_go_to_the_less_busy() -> None:
    replicas = make_replicas(2)
    replicas[0].length = 5
    caller = Caller(*replicas)
    assert [await caller.send() for _ in range(3)] == ["replica-1"] * 3
    assert await caller.send(make_request(num_tokens=10)) == "replica-1"
