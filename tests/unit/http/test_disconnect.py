"""Work lasts as long as its client: result, client gone, deadline, cancellation from outside and from inside."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message

from deployments.errors import DeadlineExceeded, GenerationFailed, Overloaded
from serve_app.http.disconnect import run_while_connected
from serve_app.http.error_response import error_as_ndjson
from serve_app.http.streaming import stream_response
from tests.loop_time import LoopTime

SIGN = b": alive"


class Client:
    """The client's side of a request whose body has been read."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.request = Request({"type": "http", "headers": [], "state": {"request_id": "id"}}, self._receive)
        self.sent: list[Message] = []

    async def _receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def chunks(self) -> list[bytes]:
        return [message["body"] for message in self.sent if message["type"] == "http.response.body"]


class Work:
    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.was_cancelled = False

    async def run(self) -> str:
        self.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        return "done"


async def test_result_comes_back() -> None:
    async def work() -> int:
        return 7

    assert await run_while_connected(Client().request, work(), deadline_s=10) == 7


async def test_error_comes_back() -> None:
    async def work() -> int:
        raise Overloaded("busy")

    with pytest.raises(Overloaded):
        await run_while_connected(Client().request, work(), deadline_s=10)


async def test_client_that_goes_away_cancels_the_work() -> None:
    client, work = Client(), Work()
    running = asyncio.create_task(run_while_connected(client.request, work.run(), deadline_s=10))
    await work.started.wait()
    client.gone.set()
    with pytest.raises(ClientDisconnect):
        await running
    assert work.was_cancelled


async def test_deadline_cancels_the_work() -> None:
    work = Work()
    with pytest.raises(DeadlineExceeded):
        await run_while_connected(Client().request, work.run(), deadline_s=0.01)
    assert work.was_cancelled


async def test_cancelled_caller_cancels_the_work() -> None:
    work = Work()
    running = asyncio.create_task(run_while_connected(Client().request, work.run(), deadline_s=10))
    await work.started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert work.was_cancelled


async def test_work_cancelled_from_inside_is_an_error_like_others() -> None:
    async def work() -> None:
        raise asyncio.CancelledError

    with pytest.raises(GenerationFailed):
        await run_while_connected(Client().request, work(), deadline_s=10)


class Chunks:
    """An async generator that tells when it was closed. may_begin: what its first chunk waits for."""

    def __init__(
        self,
        *chunks: bytes,
        error: Exception | None = None,
        hang: bool = False,
        may_begin: asyncio.Event | None = None,
    ) -> None:
        self._chunks = chunks
        self._error = error
        self._hang = hang
        self._may_begin = may_begin
        self.is_closed = False

    async def iterate(self) -> AsyncGenerator[bytes, None]:
        try:
            if self._may_begin is not None:
                await self._may_begin.wait()
            for chunk in self._chunks:
                yield chunk
            if self._error is not None:
                raise self._error
            if self._hang:
                await asyncio.Event().wait()
        finally:
            self.is_closed = True


async def stream(client: Client, chunks: Chunks, *, deadline_s: float = 10, keep_alive_s: float = 10) -> Response:
    response = await stream_response(
        client.request,
        chunks.iterate(),
        media_type="text/plain",
        error_framing=error_as_ndjson,
        deadline_s=deadline_s,
        keep_alive=SIGN,
        keep_alive_s=keep_alive_s,
    )
    await response(client.request.scope, client.request.receive, client.send)
    return response


async def test_stream_sends_each_chunk_on_its_own() -> None:
    client, chunks = Client(), Chunks(b"a", b"b")
    await stream(client, chunks)
    assert client.sent[0]["status"] == 200
    assert client.chunks == [b"a", b"b", b""]
    assert chunks.is_closed


async def test_error_before_the_first_chunk_is_raised() -> None:
    client, chunks = Client(), Chunks(error=Overloaded("busy"))
    with pytest.raises(Overloaded):
        await stream(client, chunks)
    assert client.sent == []
    assert chunks.is_closed


async def test_stream_without_a_chunk_is_an_error() -> None:
    with pytest.raises(GenerationFailed):
        await stream(Client(), Chunks())


async def test_later_error_is_the_last_chunk() -> None:
    client, chunks = Client(), Chunks(b"a", error=GenerationFailed("failed"))
    await stream(client, chunks)
    assert client.chunks == [b"a", error_as_ndjson(GenerationFailed("failed"), "id"), b""]


async def test_late_stream_ends_with_an_error() -> None:
    client, chunks, time = Client(), Chunks(b"a", hang=True), LoopTime()

    async def past_the_deadline(message: Message) -> None:
        client.sent.append(message)
        if client.chunks == [b"a"]:
            time.move_on(600)

    client.send = past_the_deadline  # type: ignore[method-assign]
    await stream(client, chunks, deadline_s=600, keep_alive_s=1000)
    assert b"deadline_exceeded" in client.chunks[1]
    assert chunks.is_closed


class WaitingClient(Client):
    """Lets the first chunk come after the second sign of life."""

    def __init__(self, may_begin: asyncio.Event) -> None:
        super().__init__()
        self._may_begin = may_begin

    async def send(self, message: Message) -> None:
        await super().send(message)
        if self.chunks == [SIGN, SIGN]:
            self._may_begin.set()


async def test_stream_that_waits_begins_and_says_that_it_lives() -> None:
    may_begin = asyncio.Event()
    client, chunks = WaitingClient(may_begin), Chunks(b"a", b"b", may_begin=may_begin)
    response = await stream(client, chunks, keep_alive_s=0.01)
    assert [message.get("status") for message in client.sent][:2] == [200, None]
    assert [chunk for chunk in client.chunks if chunk != SIGN] == [b"a", b"b", b""]
    assert client.chunks[:2] == [SIGN, SIGN]
    assert client.chunks[-1] == b""
    assert response.status_code == 200
    assert chunks.is_closed


async def test_silence_in_the_middle_of_a_stream_is_filled() -> None:
    client, chunks, time = Client(), Chunks(b"a", hang=True), LoopTime()

    async def leave_after_two_signs(message: Message) -> None:
        client.sent.append(message)
        if client.chunks == [b"a", SIGN, SIGN]:
            client.gone.set()
        elif client.chunks:
            time.move_on(60)

    client.send = leave_after_two_signs  # type: ignore[method-assign]
    await stream(client, chunks, deadline_s=600, keep_alive_s=60)
    assert client.chunks[:3] == [b"a", SIGN, SIGN]
    assert chunks.is_closed


async def test_refusal_after_a_sign_of_life_is_an_event_and_keeps_its_status_for_us() -> None:
    may_begin = asyncio.Event()
    client, chunks = WaitingClient(may_begin), Chunks(error=Overloaded("no replica"), may_begin=may_begin)
    response = await stream(client, chunks, keep_alive_s=0.01)
    assert client.sent[0]["status"] == 200
    assert [chunk for chunk in client.chunks if chunk != SIGN] == [error_as_ndjson(Overloaded("no replica"), "id"), b""]
    assert response.status_code == 503
    assert chunks.is_closed


async def test_deadline_after_a_sign_of_life_is_an_event() -> None:
    client, chunks = Client(), Chunks(hang=True)
    await stream(client, chunks, keep_alive_s=0.01, deadline_s=0.05)
    assert client.chunks[0] == SIGN
    assert b"deadline_exceeded" in client.chunks[-2]
    assert chunks.is_closed


async def test_client_that_goes_away_while_a_stream_waits_closes_it() -> None:
    client, chunks = Client(), Chunks(hang=True)

    async def leave(message: Message) -> None:
        client.sent.append(message)
        if client.chunks == [SIGN]:
            client.gone.set()

    client.send = leave  # type: ignore[method-assign]
    await stream(client, chunks, keep_alive_s=0.01)
    assert chunks.is_closed


@pytest.mark.parametrize("first", [(), (b"a",)])
async def test_client_that_goes_away_closes_the_stream(first: tuple[bytes, ...]) -> None:
    client, chunks = Client(), Chunks(*first, hang=True)
    client.gone.set()
    if first:
        await stream(client, chunks)
    else:
        with pytest.raises(ClientDisconnect):
            await stream(client, chunks)
    assert chunks.is_closed


async def test_reader_that_blocks_and_goes_away_closes_the_stream() -> None:
    client, chunks = Client(), Chunks(b"a", b"b", b"c")

    async def never(message: Message) -> None:
        if message["type"] == "http.response.body":
            client.gone.set()
            await asyncio.Event().wait()

    client.send = never  # type: ignore[method-assign]
    await stream(client, chunks)
    assert chunks.is_closed
