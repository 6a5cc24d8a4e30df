"""Which replicas of a generator a request should go to: those that have its adapter, or computed its beginning. Pure.

An adapter, and a beginning that is met for the first time, have an order of all replicas, the same in every process
that sends requests; nobody has to be asked for it, and replicas that come and go move nobody else's. Where requests
went is remembered besides, so that a conversation stays where it once had to go. Neither makes a replica much busier
than the others: then the next in the order is as good.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Mapping

from deployments.types import GenerateRequest

STRIDE = 64
"""Beginnings are known by every so many tokens: fewer are computed in one step together with what follows them."""
MAX_TOKENS = 16_384
"""Of a prompt, so many are looked at."""
MAX_EXCESS = 1.25
SPARE_REQUESTS = 1
"""A replica may have MAX_EXCESS times the mean load and SPARE_REQUESTS more before its requests go elsewhere: then
some replica always has room, and none idles while others queue. As in "Consistent hashing with bounded loads"
(Mirrokni, Thorup and Zadimoghaddam, 2018). The spare one is for few requests, of which each is a large share: two in
a batch hardly slow each other down, while computing a prompt once more costs what dozens of tokens cost."""


class Affinity:
    """What one process that sends requests to a generator knows of its replicas. Not thread-safe."""

    def __init__(self, *, block_size: int, shares_prefixes: bool, max_beginnings: int = 16_384) -> None:
        """block_size, shares_prefixes: of the engine's cache, see `deployments.engine.block_manager`.

        max_beginnings: so many are remembered, by default a million tokens; those met longest ago are forgotten.
        """
        self._stride = max(STRIDE, block_size)
        self._shares_prefixes = shares_prefixes
        self._max_beginnings = max_beginnings
        self._holders: OrderedDict[bytes, set[str]] = OrderedDict()

    def preferred(self, request: GenerateRequest, loads: Mapping[str, int | None]) -> list[str]:
        """The replicas that have, or should get, what the request needs and have room, best first.

        loads: requests at each replica; None where it is not known: it counts as one with room.
        Empty where one replica is as good as any other.
        """
        roomy = with_room(loads)
        if request.adapter is not None:
            # It decides alone: to load it costs more than to compute a prompt, and only some fit at the same time.
            return in_order(request.adapter.digest.encode(), roomy)
        beginnings = self._beginnings(request)
        if not beginnings:
            return []
        # Of lengths that double, so that a conversation which grows keeps its order for as long as it has behind it.
        order = in_order(beginnings[(1 << len(beginnings).bit_length() - 1) - 1], roomy)
        holders = self._holders_of(beginnings, loads, roomy)
        # `sorted` is stable: of equals, the first in the order.
        first = sorted((replica for replica in order if replica in holders), key=lambda replica: _load(loads[replica]))
        return first + [replica for replica in order if replica not in holders]

    def sent(self, request: GenerateRequest, replica: str) -> None:
        """Remembers that the replica has the request, and soon what it begins with."""
        if request.adapter is not None:
            return
        for beginning in self._beginnings(request):
            self._holders.setdefault(beginning, set()).add(replica)
            self._holders.move_to_end(beginning)
        while len(self._holders) > self._max_beginnings:
            self._holders.popitem(last=False)

    def _holders_of(self, beginnings: list[bytes], loads: Mapping[str, int | None], roomy: Iterable[str]) -> set[str]:
        """Those with room that have the longest of the beginnings, if it is at least half of all.

        A shorter one, as that of a chat template, saves less than there is to compute, and comes with every prompt: it
        would gather them all.
        """
        for beginning in reversed(beginnings[(len(beginnings) + 1) // 2 - 1 :]):
            holders = self._holders.get(beginning, set())
            holders.intersection_update(loads)  # forgets those that are gone
            if found := holders.intersection(roomy):
                return found
        return set()

    def _beginnings(self, request: GenerateRequest) -> list[bytes]:
        """Digests of the prompt's beginnings that can be found in the cache, shortest first."""
        if not self._shares_prefixes or request.sampling.prompt_logprobs is not None:
            return []
        # The last token is always computed.
        num_tokens = min(len(request.prompt_token_ids) - 1, MAX_TOKENS) // self._stride * self._stride
        tokens = array("q", request.prompt_token_ids[:num_tokens])
        # Accounts share nothing.
        digest = hashlib.sha256(repr(request.cache_salt).encode())
        beginnings = []
        for start in range(0, num_tokens, self._stride):
            digest.update(tokens[start : start + self._stride].tobytes())
            beginnings.append(digest.copy().digest())
        return beginnings


def with_room(loads: Mapping[str, int | None]) -> list[str]:
    """The replicas that are not much busier than the others; at least one, unless there are none."""
    known = [load for load in loads.values() if load is not None]
    most = MAX_EXCESS * (sum(known) + 1) / max(len(known), 1) + SPARE_REQUESTS
    return [replica for replica, load in loads.items() if load is None or load < most]


def in_order(key: bytes, replicas: Iterable[str]) -> list[str]:
    """The replicas in the key's own order (rendezvous hashing: the highest weight first)."""
    return sorted(replicas, key=lambda replica: hashlib.sha256(key + replica.encode()).digest(), reverse=True)


def _load(load: int | None) -> tuple[bool, int]:
    """Orders by load; the unknown, which may be that of a replica that was lost, comes last."""
    return load is None, load or 0
