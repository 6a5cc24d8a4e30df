"""Bodies of tens of megabytes: counted before they are read, a few at a time, and let go of."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from deployments.errors import InvalidRequest
from serve_app.config import DialectLimits, FineTuningConfig, LimitsConfig, WindowConfig
from serve_app.dialects.aitextgen.finetune_wire import FineTuneBody
from serve_app.http.large_bodies import large_body
from serve_app.use_cases.turns import Turns
from tests.api.administration import client_of, running_service
from tests.api.conftest import make_services
from tests.fake_fine_tuner import FakeFineTuner, Silence, started

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=b"}
# And how a body begins, which is no whole one.
ROUTES = [("/v1/aitextgen/finetune", JSON, b"{"), ("/v1/models", JSON, b"{"), ("/v1/files", FORM, b"--b\r\n")]


@asynccontextmanager
async def tuning(url: str, **parts: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service in which one large body is taken in at a time."""
    fine_tuner = FakeFineTuner((started(), Silence.FOREVER))
    config = FineTuningConfig(hold_s=30.0, min_generator_bytes=1)
    async with running_service(url, fine_tuner=fine_tuner, fine_tuning=config, **parts) as service:
        key, _ = await service.new_key("acme", scopes=["inference", "fine-tune"])
        services = replace(service.services, large_bodies=Turns(1, wait_s=0.05))
        async with client_of(services, key) as client:
            yield client


@pytest.mark.parametrize(("path", "headers", "begin"), ROUTES)
async def test_large_body_waits_for_its_turn_and_a_short_one_does_not(
    sqlite_url: str, path: str, headers: dict[str, str], begin: bytes
) -> None:
    is_read, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield begin
        is_read.set()
        await go_on.wait()

    async def other() -> AsyncIterator[bytes]:
        yield begin

    async with tuning(sqlite_url) as client:
        first = asyncio.create_task(client.post(path, content=slow(), headers=headers))
        await is_read.wait()
        refused = await client.post(path, content=other(), headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        # It says how long it is: the answer is about what it holds.
        assert (await client.post(path, content=begin, headers=headers)).status_code == 400
        go_on.set()
        assert (await first).status_code == 400
        assert (await client.post(path, content=other(), headers=headers)).status_code == 400


@pytest.mark.parametrize(("path", "headers", "begin"), ROUTES)
async def test_body_of_who_has_no_requests_left_is_not_read(
    sqlite_url: str, path: str, headers: dict[str, str], begin: bytes
) -> None:
    limits = DialectLimits(windows=(WindowConfig(name="minute", quota=1, period_s=60),))

    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError
        yield b""

    config = LimitsConfig(aitextgen=limits, inferkit=limits, totalgpt=limits)
    async with tuning(sqlite_url, limits=config) as client:
        refused = await client.post(path, content=begin, headers=headers)
        assert refused.status_code == 400
        assert (await client.post(path, content=unread(), headers=headers)).status_code == 429


async def test_texts_are_not_kept_while_the_client_waits_for_the_training(sqlite_url: str) -> None:
    async with tuning(sqlite_url) as client:
        texts = ["A text that no other test sends."]
        data = json.dumps({"training_data": texts}).encode()
        waiting = asyncio.create_task(client.post("/v1/aitextgen/finetune", content=data, headers=JSON))
        jobs: list[Any] = []
        while not jobs:
            jobs = (await client.get("/v1/aitextgen/finetune")).json()["data"]
        while is_kept(texts):  # for a moment more: the job can be seen before its request waits for it
            assert not waiting.done()
            await asyncio.sleep(0.01)
        assert not waiting.done()
        await client.post(f"/v1/aitextgen/finetune/{jobs[0]['job_id']}/cancel")
        await waiting


def is_kept(texts: list[str]) -> bool:
    gc.collect()
    bodies = [body for body in gc.get_objects() if type(body) is FineTuneBody]
    return any(body.training_data == texts for body in bodies)


async def test_body_that_arrives_too_slowly_is_refused() -> None:
    async def never() -> Any:
        await asyncio.Event().wait()

    request = Request({"type": "http", "headers": []}, never)
    async with large_body(request, make_services(), arrival_s=0.01) as arriving:
        with pytest.raises(InvalidRequest):
            await arriving.body()
