"""The clients over Serve's handles, with handles that need no Ray."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError

from deployments.continuing import MAX_LOSSES, ContinuingGenerator
from deployments.errors import (
    EngineDead,
    EngineError,
    GenerationFailed,
    InvalidParameter,
    ModelNotFound,
    Overloaded,
    ReplicaLost,
)
from deployments.ray_graph import RayGenerator, RayTokenizer, generator_name, service_error
from deployments.types import (
    EncodeRequest,
    EncodeResult,
    FinishReason,
    GenerateChunk,
    GenerateRequest,
    SamplingParams,
)

REQUEST = GenerateRequest("request", "model", (1, 2), SamplingParams())


def task_error(cause: Exception) -> RayTaskError:
    """As a caller of a replica sees the exception: an instance of its class and of RayTaskError."""
    error = RayTaskError("generate", "traceback", cause).as_instanceof_cause()
    assert isinstance(error, RayTaskError)
    return error


class FakeResult:
    def __init__(self) -> None:
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class FakeResponse:
    """A streaming response whose replica accepts the call when `accept` is called."""

    def __init__(self, items: Callable[[], AsyncIterator[Any]]) -> None:
        self._replica_result_future: asyncio.Future[FakeResult] = asyncio.get_running_loop().create_future()
        self._items = items()
        self.is_cancelled = False

    def accept(self) -> FakeResult:
        result = FakeResult()
        self._replica_result_future.set_result(result)
        return result

    async def _fetch_future_result_async(self) -> FakeResult:
        return await self._replica_result_future

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._items

    def cancel(self) -> None:
        self.is_cancelled = True
        self._replica_result_future.cancel()


class FakeHandle:
    """Answers every call with the items that `answer` yields; `responses` are the calls so far."""

    def __init__(self, answer: Callable[[], AsyncIterator[Any]], *, is_accepting: bool = True) -> None:
        self._answer = answer
        self._is_accepting = is_accepting
        self.responses: list[FakeResponse] = []
        self.methods: list[str] = []

    def options(self, *, method_name: str, stream: bool) -> "FakeHandle":
        assert stream
        self.methods.append(method_name)
        return self

    def remote(self, *_args: Any, **_kwargs: Any) -> FakeResponse:
        response = FakeResponse(self._answer)
        if self._is_accepting:
            response.accept()
        self.responses.append(response)
        return response


def yielding(*items: Any) -> Callable[[], AsyncIterator[Any]]:
    async def answer() -> AsyncIterator[Any]:
        for item in items:
            if isinstance(item, Exception):
                raise item
            yield item

    return answer


async def endless() -> AsyncIterator[int]:
    number = 0
    while True:
        yield number
        number += 1
        await asyncio.sleep(0)


def test_a_plain_model_id_stands_in_the_deployment_name_as_it_is() -> None:
    assert generator_name("SmolLM2-135M-Instruct") == "Generator-SmolLM2-135M-Instruct"


def test_an_organisation_in_the_id_is_kept_apart_from_a_dash() -> None:
    assert generator_name("org/model") != generator_name("org-model")
    assert generator_name("org/model").startswith("Generator-org-model-")


@given(st.text(min_size=1, max_size=200), st.text(min_size=1, max_size=200))
def test_deployment_names_are_valid_and_distinct(first: str, second: str) -> None:
    names = {generator_name(first), generator_name(second)}
    assert all(re.fullmatch(r"Generator-[A-Za-z0-9._-]+", name) for name in names)
    assert len(names) == len({first, second})


@pytest.mark.parametrize(
    "cause",
    [InvalidParameter("too hot", "temperature"), ModelNotFound("gpt-9"), Overloaded("full", 3.0), KeyError("x")],
)
def test_what_a_node_raised_is_given_back_unchanged(cause: Exception) -> None:
    assert service_error(task_error(cause)) is cause


@pytest.mark.parametrize(
    "error",
    [
        ActorDiedError(),
        ActorUnavailableError("gone", None),
        RequestCancelledError("request"),
        BackPressureError(9, 8),
        DeploymentUnavailableError(None),
        grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, grpc.aio.Metadata(), grpc.aio.Metadata()),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_replica_that_is_gone_or_full_is_an_overload(error: Exception) -> None:
    translated = service_error(error)
    assert isinstance(translated, Overloaded)
    assert translated.retry_after_s > 0


@pytest.mark.parametrize("wrap", [task_error, lambda error: error], ids=["actor call", "gRPC"])
def test_a_replica_whose_engine_is_dead_is_lost(wrap: Callable[[Exception], Exception]) -> None:
    lost = service_error(wrap(EngineDead("the step thread died")))
    assert isinstance(lost, ReplicaLost)
    assert lost.retry_after_s > 0


def test_a_broken_transport_is_an_engine_error_without_its_details() -> None:
    error = grpc.aio.AioRpcError(
        grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), grpc.aio.Metadata(), details="secret"
    )
    translated = service_error(error)
    assert isinstance(translated, EngineError)
    assert "secret" not in str(translated)


async def test_an_unary_call_returns_the_one_answer() -> None:
    result = EncodeResult(((1, 2),), (), 512, 1000)
    handle = FakeHandle(yielding(result))
    assert await RayTokenizer(handle, 1.0).encode(EncodeRequest("model", ())) is result


async def test_a_stream_passes_every_item_on_and_ends() -> None:
    handle = FakeHandle(yielding(1, 2, 3))
    assert [item async for item in RayGenerator(handle, 1.0).stream(REQUEST)] == [1, 2, 3]
    assert not handle.responses[0].is_cancelled


async def test_signs_of_life_are_no_items() -> None:
    handle = FakeHandle(yielding(None, 1, None, None, 2))
    assert [item async for item in RayGenerator(handle, 1.0).stream(REQUEST)] == [1, 2]


async def test_replica_that_says_nothing_any_more_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.ray_graph.SILENCE_S", 0.05)

    async def one_and_silence() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    handle = FakeHandle(one_and_silence)
    stream = RayGenerator(handle, 1.0).stream(REQUEST)
    assert await anext(stream) == 1
    with pytest.raises(ReplicaLost):
        await anext(stream)
    assert handle.responses[0].is_cancelled


async def test_closing_a_stream_cancels_the_call() -> None:
    handle = FakeHandle(endless)
    stream = RayGenerator(handle, 1.0).stream(REQUEST)
    assert await anext(stream) == 0
    await stream.aclose()
    assert handle.responses[0].is_cancelled


async def test_an_error_in_the_middle_of_a_stream_arrives_after_what_came_before() -> None:
    handle = FakeHandle(yielding(1, task_error(GenerationFailed("boom"))))
    stream = RayGenerator(handle, 1.0).stream(REQUEST)
    assert await anext(stream) == 1
    with pytest.raises(GenerationFailed, match="boom"):
        await anext(stream)


async def test_a_stream_whose_engine_dies_goes_on_at_another_replica() -> None:
    first, last = GenerateChunk(0, (1,), "a"), GenerateChunk(0, (2,), "b", finish_reason=FinishReason.LENGTH)
    answers = iter([yielding(first, task_error(EngineDead("the step thread died"))), yielding(last)])
    handle = FakeHandle(lambda: next(answers)())
    chunks = ContinuingGenerator(RayGenerator(handle, 1.0)).stream(REQUEST)
    assert [chunk async for chunk in chunks] == [first, last]


async def test_a_tokenizer_that_is_lost_is_another_ones_work() -> None:
    encoded = EncodeResult((), (), 512, 384)
    answers = iter([ActorDiedError(), ActorUnavailableError("gone", None), encoded])
    handle = FakeHandle(lambda: yielding(next(answers))())
    assert await RayTokenizer(handle, 1.0).encode(EncodeRequest("model", ())) is encoded
    assert len(handle.responses) == 3


async def test_a_request_that_ends_every_tokenizer_fails() -> None:
    handle = FakeHandle(yielding(ActorDiedError()))
    with pytest.raises(ReplicaLost):
        await RayTokenizer(handle, 1.0).encode(EncodeRequest("model", ()))
    assert len(handle.responses) == MAX_LOSSES


async def test_no_replica_within_the_limit_is_an_overload_and_withdraws_the_call() -> None:
    handle = FakeHandle(endless, is_accepting=False)
    with pytest.raises(Overloaded, match=r"within 0\.01 s"):
        await RayGenerator(handle, 0.01).generate(REQUEST)
    assert handle.responses[0].is_cancelled


async def test_cancelling_a_unary_call_cancels_it_at_the_replica() -> None:
    async def never() -> AsyncIterator[int]:
        await asyncio.Event().wait()
        yield 0

    handle = FakeHandle(never)
    task = asyncio.create_task(RayGenerator(handle, 1.0).generate(REQUEST))
    while not handle.responses:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert handle.responses[0].is_cancelled


async def test_a_call_accepted_in_the_moment_of_its_cancellation_is_cancelled_too() -> None:
    handle = FakeHandle(endless, is_accepting=False)
    task = asyncio.create_task(RayGenerator(handle, 60.0).generate(REQUEST))
    while not handle.responses:
        await asyncio.sleep(0)
    for _ in range(3):
        await asyncio.sleep(0)
    result = handle.responses[0].accept()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert result.is_cancelled
