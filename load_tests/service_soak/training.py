"""Small fine-tuning jobs now and then, by each API in turn, and a receiver of the webhooks that tell of them."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

from load_tests.service_soak.findings import Findings

_EVENTS = ("finetune.completed", "finetune.failed", "finetune.cancelled")
_DOCUMENTS = [
    f"Keeper {number} of the lighthouse is called Ottoline, and writes down the ships that pass." for number in range(6)
]
_MAX_MODELS = 4
_POLL_S = 1.0
_JOB_TIMEOUT_S = 1800
_WEBHOOK_TIMEOUT_S = 60
_RETIRE_S = 30
"""After so long no request runs any more that was begun with a model that was in use."""


@dataclass
class Receiver:
    """Remembers the events by job; answers each third one with 500 the first time that it comes."""

    findings: Findings
    url: str = ""
    secret: str = ""
    events: dict[str, str] = field(default_factory=dict)
    num_received: int = 0
    _refused: set[str] = field(default_factory=set)
    _num_events: int = 0

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.num_received += 1
        try:
            event = Webhook(self.secret).verify(body, dict(request.headers))
        except WebhookVerificationError as error:
            self.findings.problem(f"a webhook whose signature is wrong: {error}")
            return web.Response(status=400)
        delivery = request.headers["webhook-id"]
        if delivery not in self._refused:
            self._num_events += 1
            if self._num_events % 3 == 0:
                self._refused.add(delivery)
                return web.Response(status=500)
        self.events[event["data"]["job_id"]] = event["type"]
        return web.Response(status=204)


@asynccontextmanager
async def receiving(findings: Findings) -> AsyncIterator[Receiver]:
    """A receiver on the loopback, for as long as the context lasts."""
    receiver = Receiver(findings)
    application = web.Application()
    application.router.add_post("/hook", receiver.take)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
        yield receiver
    finally:
        await runner.cleanup()


@dataclass
class Trainer:
    """Trains with one key. `models` are those that can be asked for, at most four; older ones are deleted. A third of
    the jobs is cancelled."""

    session: aiohttp.ClientSession
    key: str
    receiver: Receiver
    findings: Findings
    rng: random.Random
    models: list[str] = field(default_factory=list)
    num_succeeded: int = 0
    num_cancelled: int = 0
    _number: int = 0

    @property
    def has_all(self) -> bool:
        """Whether there are as many models as are kept."""
        return len(self.models) >= _MAX_MODELS

    async def subscribe(self) -> None:
        body = {"url": self.receiver.url, "events": list(_EVENTS)}
        self.receiver.secret = (await self._call("POST", "/v1/aitextgen/webhooks/create", json=body))["secret"]

    async def train(self) -> None:
        """One job, from its creation until its webhook has come and its model can be asked for."""
        self._number += 1
        begin = (self._aitextgen, self._openai, self._inferkit)[self._number % 3]
        job = await begin()
        if self._number % 3 == 2:
            await self._cancel(job)
        status = await self._ended(job)
        await self._told(job["job_id"], status)
        if status == "success":
            self.num_succeeded += 1
            self.models.append(job["model_id"])
            await self._retire()
        elif status == "cancelled":
            self.num_cancelled += 1
        else:
            self.findings.problem(f"job {job['job_id']} ended as {status}")

    async def _aitextgen(self) -> dict[str, Any]:
        body = {"training_data": _DOCUMENTS, "epochs": 2, "seed": self._number}
        headers = {"Prefer": "respond-async"}
        return dict(await self._call("POST", "/v1/aitextgen/finetune", json=body, headers=headers))

    async def _openai(self) -> dict[str, Any]:
        form = aiohttp.FormData({"purpose": "fine-tune"})
        lines = "\n".join(json.dumps({"text": text}) for text in _DOCUMENTS)
        form.add_field("file", lines.encode(), filename="keepers.jsonl")
        file = await self._call("POST", "/v1/files", data=form)
        body = {"model": "standard", "training_file": file["id"], "hyperparameters": {"n_epochs": 2}}
        job = await self._call("POST", "/v1/fine_tuning/jobs", json=body)
        await self._call("DELETE", f"/v1/files/{file['id']}")
        return dict(await self._call("GET", f"/v1/aitextgen/finetune/{job['id']}"))

    async def _inferkit(self) -> dict[str, Any]:
        generator = await self._call("POST", "/v1/models", json={"name": "keepers", "documents": _DOCUMENTS})
        jobs = (await self._call("GET", "/v1/aitextgen/finetune"))["data"]
        [job] = [job for job in jobs if job["model_id"] == generator["id"]]
        return dict(job)

    async def _cancel(self, job: dict[str, Any]) -> None:
        await asyncio.sleep(self.rng.uniform(0, 10))
        path = f"/v1/aitextgen/finetune/{job['job_id']}/cancel"
        await self._call("POST", path, accepted=(200, 409))  # 409: it has ended meanwhile

    async def _ended(self, job: dict[str, Any]) -> str:
        """Its last status."""
        ends_at = time.monotonic() + _JOB_TIMEOUT_S
        while time.monotonic() < ends_at:
            status = str((await self._call("GET", f"/v1/aitextgen/finetune/{job['job_id']}"))["status"])
            if status not in ("queued", "running", "paused"):
                return status
            await asyncio.sleep(_POLL_S)
        return "running for too long"

    async def _told(self, job_id: str, status: str) -> None:
        """Waits for the webhook."""
        event = {"success": "finetune.completed", "cancelled": "finetune.cancelled"}.get(status, "finetune.failed")
        ends_at = time.monotonic() + _WEBHOOK_TIMEOUT_S
        while self.receiver.events.get(job_id) != event:
            if time.monotonic() > ends_at:
                self.findings.problem(f"job {job_id} is {status}, and no webhook has told {event}")
                return
            await asyncio.sleep(_POLL_S)

    async def _retire(self) -> None:
        if len(self.models) > _MAX_MODELS:
            oldest = self.models.pop(0)
            await asyncio.sleep(_RETIRE_S)
            await self._call("DELETE", f"/v1/models/{oldest}")

    async def _call(
        self, method: str, path: str, *, accepted: tuple[int, ...] = (200, 201, 202), **options: Any
    ) -> Any:
        headers = {"Authorization": f"Bearer {self.key}"} | options.pop("headers", {})
        async with self.session.request(method, path, headers=headers, **options) as answer:
            self.findings.answers["training", answer.status] += 1
            if answer.status not in accepted:
                raise TrainingRefused(f"{method} {path}: {answer.status} {(await answer.text())[:300]}")
            return await answer.json()


class TrainingRefused(Exception):
    """A request of the trainer was answered otherwise than it should be."""
