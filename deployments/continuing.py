"""A generator whose answers survive the loss of the replica that gives them. Pure of Ray: it calls a generator again.

Every random number is a function of seed, sequence and position, so what another replica adds to the tokens that were
delivered already is what the lost one would have added. The client sees a pause.
"""

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from deployments.errors import ReplicaLost
from deployments.graph import Generator
from deployments.meter import Counter, Meter, NoMeter
from deployments.types import GenerateChunk, GenerateRequest, GenerateResult

MAX_LOSSES = 5
"""How many replicas may be lost in a row without a chunk between them."""

REPLICAS_LOST = Counter(
    "tritext_replicas_lost_total", "Generator replicas that were lost in the middle of an answer", ("model",)
)
METRICS = (REPLICAS_LOST,)

logger = logging.getLogger(__name__)


class ContinuingGenerator:
    """Implements `deployments.graph.Generator` over one whose calls raise ReplicaLost."""

    def __init__(self, generator: Generator, meter: Meter | None = None) -> None:
        self._generator = generator
        self._meter = meter or NoMeter()

    async def generate(self, request: GenerateRequest) -> GenerateResult:
        """Begins again where a replica is lost: nothing of the answer was given yet."""
        losses = _Losses(request, self._meter)
        while True:
            try:
                return await self._generator.generate(request)
            except ReplicaLost as loss:
                losses.add(loss)

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        delivered = _Delivered(request)
        losses = _Losses(request, self._meter)
        while not delivered.is_complete:
            try:
                async with aclosing(self._generator.stream(delivered.rest())) as chunks:
                    async for chunk in chunks:
                        losses.reset()
                        delivered.add(chunk)
                        yield chunk
                return
            except ReplicaLost as loss:
                losses.add(loss)

    async def check_health(self) -> None:
        await self._generator.check_health()


class _Losses:
    """Replicas lost in a row."""

    def __init__(self, request: GenerateRequest, meter: Meter) -> None:
        self._request = request
        self._meter = meter
        self._number = 0

    def reset(self) -> None:
        self._number = 0

    def add(self, loss: ReplicaLost) -> None:
        """Raises the loss where it is one too many."""
        self._number += 1
        self._meter.add(REPLICAS_LOST, 1, model=self._request.model)
        if self._number >= MAX_LOSSES:
            raise loss
        logger.warning("request %s goes on at another replica", self._request.request_id)


class _Delivered:
    """What of an answer has been given."""

    def __init__(self, request: GenerateRequest) -> None:
        self._request = request
        generated = request.generated or ((),) * request.num_sequences
        self._token_ids = [list(token_ids) for token_ids in generated]
        self._complete = set(request.complete)
        self._has_prompt_logprobs = False

    @property
    def is_complete(self) -> bool:
        return len(self._complete) == len(self._token_ids)

    def add(self, chunk: GenerateChunk) -> None:
        self._token_ids[chunk.index] += chunk.token_ids
        if chunk.finish_reason is not None:
            self._complete.add(chunk.index)
        self._has_prompt_logprobs |= chunk.prompt_logprobs is not None

    def rest(self) -> GenerateRequest:
        """The request for what is missing."""
        sampling = self._request.sampling
        if self._has_prompt_logprobs:
            sampling = replace(sampling, prompt_logprobs=None)
        return replace(
            self._request,
            sampling=sampling,
            generated=tuple(map(tuple, self._token_ids)),
            complete=frozenset(self._complete),
        )
