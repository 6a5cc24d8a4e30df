"""How many replicas of a generator there should be, by what their engines have to do. Pure.

Ray Serve imports this module in its controller, so it imports nothing heavy. It asks the policy while there are
replicas; from none it starts one by itself as soon as a request waits.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from deployments.engine.protocol import EngineStats

SEQUENCES = "sequences"
PENDING_TOKENS = "pending_tokens"
CACHE_USE = "cache_use"

_SLACK = 0.05
"""A load this little above a whole number of replicas starts no further one."""


def report(stats: "EngineStats") -> dict[str, float]:
    """What a replica tells the policy: sequences at work or waiting, prompt tokens pending, share of the cache used."""
    return {
        SEQUENCES: float(stats.num_running + stats.num_waiting),
        PENDING_TOKENS: float(stats.num_pending_tokens),
        CACHE_USE: 1 - stats.num_free_blocks / max(stats.num_blocks, 1),
    }


class Context(Protocol):
    """What is read of Ray Serve's AutoscalingContext. aggregated_metrics: by name and replica, the means of what was
    reported over the look-back period. total_queued_requests: those that wait for a replica with room."""

    @property
    def aggregated_metrics(self) -> Mapping[str, Mapping[Any, float]] | None: ...

    @property
    def total_num_requests(self) -> float: ...

    @property
    def total_queued_requests(self) -> float | None: ...


class GeneratorLoadPolicy:
    """Enough replicas that none has more than these sequences at work, prompt tokens pending and share of cache used.

    A replica is as loaded as whichever of the three is nearest to its target: sequences and cache tell of generation,
    pending tokens of prompts, of which a single request may bring thousands. Requests that wait for a replica count
    as sequences. Bounds, delays and factors are Ray Serve's own, in the same `autoscaling_config`.
    """

    def __init__(
        self, target_sequences: float = 24, target_pending_tokens: float = 4096, target_cache_use: float = 0.8
    ) -> None:
        """Raises ValueError where a target is not above zero."""
        self._targets = {
            SEQUENCES: target_sequences,
            PENDING_TOKENS: target_pending_tokens,
            CACHE_USE: target_cache_use,
        }
        if min(self._targets.values()) <= 0:
            raise ValueError("the targets of the generator's load must be above zero")

    def __call__(self, context: Context) -> tuple[int, dict[str, Any]]:
        """The wanted number of replicas, and no state."""
        if not context.total_num_requests:
            return 0, {}
        metrics = context.aggregated_metrics or {}
        loads: dict[Any, float] = {}
        for name, target in self._targets.items():
            for replica, value in metrics.get(name, {}).items():
                loads[replica] = max(loads.get(replica, 0.0), value / target)
        waiting = (context.total_queued_requests or 0) / self._targets[SEQUENCES]
        return max(1, math.ceil(sum(loads.values()) + waiting - _SLACK)), {}
