"""Serve's request routers: its own, which do not wait for what is gone; for generators one that asks
`deployments.routing` first.

They run in every process that holds a handle of the deployment, on the loop of Serve's router. The names that it
overrides or reads and that Ray does not publish are those of Ray 2.60. Serve pickles this module by value.
"""

import asyncio
from collections import Counter
from typing import Any

from ray.exceptions import ActorUnavailableError
from ray.serve._private.common import RunningReplicaInfo
from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter
from ray.serve.request_router import PendingRequest, ReplicaID, RunningReplica

from deployments.liveness import SILENCE_S
from deployments.routing import Affinity
from deployments.types import GenerateRequest

_MAX_PREFERRED = 2
"""So many preferred replicas are asked one after the other, for each may be full or dead and take 0.1 s to find out."""


class _AnsweringReplica(RunningReplica):  # type: ignore[misc]  # Ray is not typed
    """Says within SILENCE_S whether it takes a request; otherwise Serve chooses another one."""

    def try_send_request(self, pr: PendingRequest, with_rejection: bool) -> Any:
        result = super().try_send_request(pr, with_rejection)
        ask = result.get_rejection_response

        async def ask_in_time() -> Any:
            try:
                async with asyncio.timeout(SILENCE_S):
                    return await ask()
            except TimeoutError:
                raise ActorUnavailableError("the replica does not answer", self.actor_id.binary()) from None

        result.get_rejection_response = ask_in_time
        return result


class LoadRouter(PowerOfTwoChoicesRequestRouter):  # type: ignore[misc]  # Ray is not typed
    """The less busy of two replicas, as Serve's own router has it."""

    def create_replica_wrapper(self, replica_info: RunningReplicaInfo) -> RunningReplica:
        return _AnsweringReplica(replica_info)


class AffinityRouter(LoadRouter):
    """What no replica is preferred for, and what those that are preferred have no room for, goes to the less busy of
    two replicas, as it does with Serve's own router; so do back-off, probing and rejection."""

    def initialize_state(self, **affinity: Any) -> None:
        """Called by Serve with `request_router_kwargs`: the arguments of Affinity."""
        self._affinity = Affinity(**affinity)
        # Requests that have a replica, but are not yet counted in the lengths of queues.
        self._assigned: Counter[ReplicaID] = Counter()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Groups of replicas; of the first that has one with room, Serve takes the least busy one."""
        any_two = await super().choose_replicas(candidate_replicas, pending_request)
        request = _generate_request(pending_request)
        if request is None:
            return list(any_two)
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        loads = {name: self._load_of(replica.replica_id) for name, replica in replicas.items()}
        preferred = self._affinity.preferred(request, loads)[:_MAX_PREFERRED]
        return [*([replicas[name]] for name in preferred), *any_two]

    def _load_of(self, replica_id: ReplicaID) -> int | None:
        """Requests at the replica, as far as this process knows; None where it has not heard of it lately."""
        length = self.replica_queue_len_cache.get(replica_id)
        return None if length is None else length + self._assigned[replica_id]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Called by Serve when the replica has accepted the request."""
        super().on_request_routed(pending_request, replica_id, result)
        request = _generate_request(pending_request)
        if request is not None:
            self._affinity.sent(request, replica_id.unique_id)

    def _fulfill_next_pending_request(self, replica: RunningReplica, request_metadata: Any = None) -> None:
        super()._fulfill_next_pending_request(replica, request_metadata)
        # Those who wait for a replica send, and Serve counts, in the next round of the loop; many may be decided on in
        # this one. What is called then comes after them.
        self._assigned[replica.replica_id] += 1
        self._event_loop.call_soon(self._assigned.subtract, (replica.replica_id,))

    def _get_pending_request_matching_metadata(self, request_metadata: Any = None) -> PendingRequest | None:
        """The request that a replica was chosen for: Serve's own router gives any replica to whoever waits longest.

        Told by the identity of its metadata: all calls that come of one HTTP request have the same ids.
        """
        for pending_request in self._pending_requests_to_fulfill:
            if pending_request.metadata is request_metadata and not pending_request.future.done():
                return pending_request
        return None


def _generate_request(pending_request: PendingRequest | None) -> GenerateRequest | None:
    """What the call brings, where it is a call to generate."""
    arguments = () if pending_request is None else pending_request.args
    return arguments[0] if arguments and isinstance(arguments[0], GenerateRequest) else None
