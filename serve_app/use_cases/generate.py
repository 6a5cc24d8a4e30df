"""Continue prompts: from a dialect's canonical command to the graph's answers. Knows no HTTP and no dialect."""

import asyncio
import math
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any, Literal

from deployments.errors import ContextLengthExceeded, InvalidParameter
from deployments.graph import Graph
from deployments.meter import Meter, NoMeter
from deployments.types import (
    EncodeRequest,
    GenerateChunk,
    GenerateRequest,
    GenerateResult,
    Prompt,
    SamplingParams,
    SequenceOutput,
)
from serve_app.ledger.entries import Outcome
from serve_app.use_cases import delivery
from serve_app.use_cases.admission import Admission, Reservation
from serve_app.use_cases.callers import Caller
from serve_app.use_cases.models import Models
from serve_app.use_cases.request_metrics import RequestMeasurement


@dataclass(frozen=True, slots=True)
class GenerateCommand:
    """What a dialect asks for.

    `model` is an id or an alias, as the client may spell it.
    `sampling` holds everything but what only admission can know, and its fields of those names are overwritten:
    `max_tokens` None means the room that is left, `seed` None means a fresh one, `bad_words` are still text.
    `n` sequences are answered for each prompt, the best of `best_of` by cumulative log-probability.
    `overflow`: where prompt and `max_tokens` exceed the context, answer with what fits (`clamp`), refuse (`reject`) or
    keep only the end of the prompt, though never less than half a context of it (`truncate`).
    `drop_output`: only the prompt is answered; what is generated is neither shown nor billed.
    """

    caller: Caller
    model: str
    prompts: tuple[Prompt, ...]
    sampling: SamplingParams
    max_tokens: int | None
    seed: int | None = None
    bad_words: tuple[str, ...] = ()
    n: int = 1
    best_of: int | None = None
    truncate_prompt_tokens: int | None = None
    overflow: Literal["clamp", "reject", "truncate"] = "clamp"
    drop_output: bool = False


@dataclass(frozen=True, slots=True)
class PromptAnswer:
    """The answer to one prompt of the command: `result.sequences` holds the n best, re-indexed from 0."""

    prompt_token_ids: tuple[int, ...]
    result: GenerateResult


@dataclass(frozen=True, slots=True)
class PromptChunk:
    """A piece of the answer to prompt `prompt_index`."""

    prompt_index: int
    prompt_token_ids: tuple[int, ...]
    chunk: GenerateChunk


class TextGeneration:
    """Encodes, checks that the prompts fit, reserves what the answer may cost, asks the model's generator for all
    prompts of a command at once, and settles what was delivered."""

    def __init__(self, graph: Graph, models: Models, admission: Admission, meter: Meter | None = None) -> None:
        self._graph = graph
        self._models = models
        self._admission = admission
        self._meter = meter or NoMeter()

    async def generate(self, command: GenerateCommand) -> list[PromptAnswer]:
        """As `answering`, for answers that are as good as sent."""
        async with self.answering(command) as answers:
            return answers

    @asynccontextmanager
    async def answering(self, command: GenerateCommand) -> AsyncGenerator[list[PromptAnswer], None]:
        """The whole answers, in the order of the prompts. The first that fails cancels the others.

        They are billed when the context is left; nothing is where it is left by an exception. So whatever may still
        fail before the answer is sent belongs into the context.
        Raises ModelNotFound, GeneratorNotDeployed, InvalidParameter, ContextLengthExceeded, RateLimited, OutOfCredits,
        Overloaded, EngineError.
        """
        requests = await self._prepare(command)
        generator = self._graph.generators[requests[0].model]
        async with self._admitted(command, requests) as (reservation, measurement):
            tasks = [asyncio.create_task(generator.generate(request)) for request in requests]
            try:
                results = await asyncio.gather(*tasks)
            finally:
                await _cancel(tasks)
            measurement.whole(results)
            answers = [
                PromptAnswer(tuple(request.prompt_token_ids), select_best(result, command))
                for request, result in zip(requests, results, strict=True)
            ]
            yield answers
            counts = (delivery.whole(answer.result, drop_output=command.drop_output) for answer in answers)
            await reservation.settle(Outcome.COMPLETED, about_to_send=reduce(add, counts))

    async def stream(self, command: GenerateCommand) -> AsyncGenerator[PromptChunk, None]:
        """The answers in pieces, those of different prompts interleaved. Raises what `answering` raises.

        A piece counts as delivered once the next one is asked for. All is settled when the last one was.
        The command may not ask for more sequences than it wants answered (`best_of`): they can only be ranked whole.
        """
        if command.best_of is not None and command.best_of != command.n:
            raise InvalidParameter("best_of above n cannot be streamed: the best are known only at the end", "best_of")
        requests = await self._prepare(command)
        async with self._admitted(command, requests) as (reservation, measurement):
            delivered = delivery.StreamCounts(detokenize=command.sampling.detokenize, drop_output=command.drop_output)
            async with aclosing(self._interleave(requests)) as items:
                async for item in items:
                    measurement.piece(item.chunk)
                    yield item
                    reservation.delivered(delivered.add(item.prompt_index, len(item.prompt_token_ids), item.chunk))

    async def _interleave(self, requests: Sequence[GenerateRequest]) -> AsyncGenerator[PromptChunk, None]:
        generator = self._graph.generators[requests[0].model]
        chunks: asyncio.Queue[PromptChunk | BaseException | None] = asyncio.Queue()

        async def relay(prompt_index: int, request: GenerateRequest) -> None:
            try:
                async with aclosing(generator.stream(request)) as stream:
                    async for chunk in stream:
                        chunks.put_nowait(PromptChunk(prompt_index, tuple(request.prompt_token_ids), chunk))
                chunks.put_nowait(None)
            except Exception as error:
                chunks.put_nowait(error)

        tasks = [asyncio.create_task(relay(index, request)) for index, request in enumerate(requests)]
        try:
            num_open = len(tasks)
            while num_open:
                item = await chunks.get()
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    num_open -= 1
                else:
                    yield item
        finally:
            await _cancel(tasks)

    @asynccontextmanager
    async def _admitted(
        self, command: GenerateCommand, requests: Sequence[GenerateRequest]
    ) -> AsyncGenerator[tuple[Reservation, RequestMeasurement], None]:
        """Within it the most that the answer may cost is reserved; its end settles and measures the request."""
        measurement = RequestMeasurement(self._meter, command.caller, requests)
        with measurement.running():
            most = reduce(add, (delivery.most(request, drop_output=command.drop_output) for request in requests))
            reservation = await self._admission.admit(command.caller, _model_id(requests[0]), most)
            try:
                async with reservation:
                    yield reservation, measurement
            finally:
                measurement.charged(reservation.counts)

    async def _prepare(self, command: GenerateCommand) -> list[GenerateRequest]:
        """The requests for the generator: ids resolved, prompts encoded and fitting, seed and length settled."""
        model = await self._models.resolve_deployed(command.caller.principal, command.model)
        encoded = await self._graph.tokenizer.encode(
            EncodeRequest(model.base.id, command.prompts, command.bad_words, command.truncate_prompt_tokens)
        )
        num_sequences = command.best_of or command.n
        logprobs = command.sampling.logprobs
        if num_sequences > command.n and logprobs is None:
            logprobs = 0
        seed = command.seed if command.seed is not None else secrets.randbits(63)
        requests = []
        for index, prompt_token_ids in enumerate(encoded.prompt_token_ids):
            if command.overflow == "truncate":
                prompt_token_ids = _keep_end(prompt_token_ids, command.max_tokens, encoded.context_length)
            room = encoded.context_length - len(prompt_token_ids)
            wanted = command.max_tokens if command.max_tokens is not None else room
            if room < 1 or (command.overflow == "reject" and wanted > room):
                raise ContextLengthExceeded(len(prompt_token_ids), encoded.context_length)
            sampling = replace(
                command.sampling,
                max_tokens=min(wanted, room),
                min_tokens=min(command.sampling.min_tokens, wanted, room),
                seed=seed,
                bad_words_token_ids=encoded.bad_words_token_ids,
                logprobs=logprobs,
            )
            request_id = (
                command.caller.request_id
                if len(encoded.prompt_token_ids) == 1
                else f"{command.caller.request_id}-{index}"
            )
            requests.append(
                GenerateRequest(
                    request_id=request_id,
                    model=model.base.id,
                    prompt_token_ids=prompt_token_ids,
                    sampling=sampling,
                    num_sequences=num_sequences,
                    cache_salt=command.caller.account,
                    adapter=model.adapter,
                )
            )
        return requests


def _model_id(request: GenerateRequest) -> str:
    """What usage is written down for: the fine-tuned model, where it is one."""
    return request.model if request.adapter is None else request.adapter.id


def _keep_end(prompt_token_ids: tuple[int, ...], max_tokens: int | None, context_length: int) -> tuple[int, ...]:
    """The last tokens of the prompt that leave room for `max_tokens`, or half a context where that is more."""
    most = max(context_length - (max_tokens or 1), context_length // 2, 1)
    return prompt_token_ids[-most:]


async def _cancel(tasks: list["asyncio.Task[Any]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def select_best(result: GenerateResult, command: GenerateCommand) -> GenerateResult:
    """The `n` sequences of the highest cumulative log-probability, best first. Usage still counts all of them."""
    if len(result.sequences) == command.n:
        return result
    ranked = sorted(result.sequences, key=lambda sequence: -_cumulative_logprob(sequence))
    keep_logprobs = command.sampling.logprobs is not None
    kept = tuple(
        replace(sequence, index=index, logprobs=sequence.logprobs if keep_logprobs else None)
        for index, sequence in enumerate(ranked[: command.n])
    )
    return replace(result, sequences=kept)


def _cumulative_logprob(sequence: SequenceOutput) -> float:
    return math.fsum(position.chosen.logprob for position in sequence.logprobs or ())
