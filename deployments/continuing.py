"""A generator whose answers survive the loss of the replica that gives them. Pure of Ray: it calls a generator again.

Every random number is a function of seed, sequence and position, so what another replica adds to the tokens that were
delivered already is what the lost one would have added. The client sees a pause.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace

from deployments.errors import Overloaded, ReplicaLost
from deployments.graph import Generator
from deployments.meter import Counter, Meter, NoMeter
from deployments.types import GenerateChunk, GenerateRequest, GenerateResult

MAX_LOSSES = 5
"""How many replicas one answer may lose in a row without a chunk between them."""
MAX_LOSSES_IN_ALL = 10
"""How many in all: it may be the request that kills them."""
MAX_REFUSALS = 30
"""How often those that are left may refuse, in a row, what a lost one has left: all that it worked on comes to them."""

REPLICAS_LOST = Counter(
    "tritext_replicas_lost_total", "Generator replicas that were lost in the middle of an answer", ("model",)
)
METRICS = (REPLICAS_LOST,)

_LONGEST_PAUSE_S = 5.0

Sleep = Callable[[float], Awaitable[None]]

logger = logging.getLogger(__name__)


class ContinuingGenerator:
    """Implements `deployments.graph.Generator` over one whose calls raise ReplicaLost.

    Once a replica was lost, an overload of the others is waited for; before, it is the answer.
    """

    def __init__(self, generator: Generator, meter: Meter | None = None, *, sleep: Sleep = asyncio.sleep) -> None:
        self._generator = generator
        self._meter = meter or NoMeter()
        self._sleep = sleep

    async def generate(self, request: GenerateRequest) -> GenerateResult:
        """Begins again where a replica is lost: nothing of the answer was given yet."""
        setbacks = _Setbacks(request, self._meter, self._sleep)
        while True:
            try:
                return await self._generator.generate(request)
            except Overloaded as error:
                await setbacks.bear(error)

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        delivered = _Delivered(request)
        setbacks = _Setbacks(request, self._meter, self._sleep)
        while not delivered.is_complete:
            try:
                async with aclosing(self._generator.stream(delivered.rest())) as chunks:
                    async for chunk in chunks:
                        setbacks.got_on()
                        delivered.add(chunk)
                        yield chunk
                return
            except Overloaded as error:
                if not delivered.is_complete:
                    await setbacks.bear(error)

    async def check_health(self) -> None:
        await self._generator.check_health()


class _Setbacks:
    """What has come between a request and its answer."""

    def __init__(self, request: GenerateRequest, meter: Meter, sleep: Sleep) -> None:
        self._request = request
        self._meter = meter
        self._sleep = sleep
        self._losses = self._losses_in_a_row = self._refusals_in_a_row = 0

    def got_on(self) -> None:
        self._losses_in_a_row = self._refusals_in_a_row = 0

    async def bear(self, error: Overloaded) -> None:
        """Returns when the request may be sent again; raises the error where it is one too many."""
        if isinstance(error, ReplicaLost):
            self._losses += 1
            self._losses_in_a_row += 1
            self._meter.add(REPLICAS_LOST, 1, model=self._request.model)
            if self._losses_in_a_row >= MAX_LOSSES or self._losses >= MAX_LOSSES_IN_ALL:
                raise error
            logger.warning("request %s goes on at another replica", self._request.request_id)
            if self._losses_in_a_row > 1:
                # Perhaps the same one: a replica whose engine is dead takes calls, and as the least busy one, until it
                # has failed Serve's health checks. All pauses together are longer than that takes.
                await self._sleep(min(error.retry_after_s * 2 ** (self._losses_in_a_row - 1), _LONGEST_PAUSE_S))
            return
        self._refusals_in_a_row += 1
        if not self._losses or self._refusals_in_a_row >= MAX_REFUSALS:
            raise error
        await self._sleep(min(error.retry_after_s, _LONGEST_PAUSE_S))


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
