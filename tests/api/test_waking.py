"""Requests for a model that sleeps, on the wire: signs of life while it wakes, and what is said where it does not."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

from deployments.errors import Overloaded
from deployments.types import GenerateChunk, GenerateRequest
from serve_app.api import create_api
from serve_app.config import HttpConfig
from serve_app.ledger.entries import Outcome
from tests.api.conftest import make_services
from tests.fakes import FakeAdmissionStore, FakeGenerator
from tests.live_server import RawClient, serve

INFERKIT = ("/v1/models/standard/generate", {"length": 20, "streamResponse": True})
COMPLETIONS = ("/v1/completions", {"model": "standard", "prompt": "x", "stream": True})
CHAT = (
    "/v1/chat/completions",
    {"model": "standard", "messages": [{"role": "user", "content": "x"}], "stream": True},
)
STREAMS = [INFERKIT, COMPLETIONS, CHAT]
HTTP = HttpConfig(stream_keep_alive_s=0.02)
COMMENT = b": keep-alive\n\n"


class SleepingGenerator(FakeGenerator):
    """Answers once it may wake, or raises this refusal."""

    def __init__(self, refusal: Exception | None = None) -> None:
        super().__init__()
        self.may_wake = asyncio.Event()
        self._refusal = refusal

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        await self.may_wake.wait()
        if self._refusal is not None:
            raise self._refusal
        async with aclosing(super().stream(request)) as chunks:
            async for chunk in chunks:
                yield chunk


async def post(client: RawClient, path: str, body: dict[str, Any], **headers: str) -> None:
    await client.post(path, json.dumps(body).encode(), headers=headers)


@pytest.mark.parametrize(("path", "body"), [COMPLETIONS, CHAT])
async def test_events_begin_with_comments_while_the_model_wakes(path: str, body: dict[str, Any]) -> None:
    generator = SleepingGenerator()
    api = create_api(make_services(generator=generator, http=HTTP))
    async with serve(api) as port, RawClient.connect(port) as client:
        await post(client, path, body)
        status, headers = await client.read_head()
        assert (status, headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
        assert [await client.read_chunk() for _ in range(2)] == [COMMENT, COMMENT]
        generator.may_wake.set()
        chunks = [chunk for chunk in await client.read_body_chunks() if chunk != COMMENT]
    assert chunks[-1] == b"data: [DONE]\n\n"
    assert len(chunks) > 3


async def test_lines_of_inferkit_begin_with_pieces_without_text() -> None:
    generator = SleepingGenerator()
    path, body = INFERKIT
    api = create_api(make_services(generator=generator, http=HTTP))
    async with serve(api) as port, RawClient.connect(port) as client:
        await post(client, path, body)
        status, _ = await client.read_head()
        waiting = [json.loads(await client.read_chunk()) for _ in range(2)]
        generator.may_wake.set()
        rest = [json.loads(chunk) for chunk in await client.read_body_chunks()]
    assert status == 200
    assert [(line["text"], line["data"]["text"], line["isFinalChunk"]) for line in waiting] == [("", "", False)] * 2
    assert "".join(line["text"] for line in rest) == " there was light"
    assert rest[-1]["isFinalChunk"]


@pytest.mark.parametrize(("path", "body"), STREAMS)
@pytest.mark.parametrize("is_late", [False, True])
async def test_overload_is_an_error_of_the_dialect_costs_nothing_and_is_not_kept(
    path: str, body: dict[str, Any], *, is_late: bool
) -> None:
    """Before the first sign of life it has its status; after it, it is the last event."""
    store = FakeAdmissionStore()
    generator = SleepingGenerator(Overloaded("no replica had room for the request within 120 s"))
    http = HTTP if is_late else HttpConfig()
    async with serve(create_api(make_services(generator=generator, http=http, admission_store=store))) as port:
        for _ in range(2):  # the second time not from what was kept
            generator.may_wake.clear()
            async with RawClient.connect(port) as client:
                await post(client, path, body, **{"Idempotency-Key": "k"})
                if not is_late:
                    generator.may_wake.set()
                status, headers = await client.read_head()
                if is_late:
                    await client.read_chunk()
                    generator.may_wake.set()
                    content = b"".join(await client.read_body_chunks()).removesuffix(b"data: [DONE]\n\n")
                else:
                    content = await client.read_whole_body(headers)
            assert status == (200 if is_late else 503)
            assert "idempotent-replayed" not in headers
            if not is_late:
                assert headers["retry-after"] == "1"
            last = [line for line in content.splitlines() if line][-1]
            error = json.loads(last.removeprefix(b"data: "))["error"]
            assert (error["code"], error["extensions"]["code"]) == ("overloaded", "OVERLOADED")
    assert [(settlement.outcome, settlement.cost) for settlement in store.settled] == [(Outcome.FAILED, 0)] * 2


@pytest.mark.parametrize(("path", "body"), STREAMS)
async def test_bad_requests_are_refused_while_the_model_sleeps(path: str, body: dict[str, Any]) -> None:
    api = create_api(make_services(generator=SleepingGenerator(), http=HTTP))
    async with serve(api) as port, RawClient.connect(port) as client:
        await post(client, path, body | {"top_p": 7, "topP": 7})
        status, _ = await client.read_head()
    assert status == 400
