"""A changed configuration is rolled out under load: no client notices, and every answer is the undisturbed one."""

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.integration.prompts import PROMPTS
from tests.integration.service import GENERATOR, LOCAL_CONFIG, MODEL, Service, running, wait_until

pytestmark = pytest.mark.timeout(600)

NUM_CLIENTS = 5
DEPLOYMENTS = ("Ingress", "Tokenizer", GENERATOR)
LONG = {
    "model": MODEL,
    "prompt": "The history of the sea is",
    "max_tokens": 1200,
    "ignore_eos": True,
    "seed": 1,
    "stream": True,
}
"""A stream that lasts longer than the 20 seconds that Serve gives a replica to stop unless told otherwise."""


@dataclass(frozen=True)
class Ask:
    """A request whose answer is the same each time."""

    path: str
    body: dict[str, Any]

    async def text(self, client: httpx.AsyncClient, request_id: str) -> str:
        """What the client is answered, however that was cut into pieces. Raises AssertionError."""
        async with client.stream("POST", self.path, json=self.body, headers={"x-request-id": request_id}) as answer:
            content = (await answer.aread()).decode()
        assert answer.status_code == 200, f"{answer.status_code} {content}"
        if self.path == "/v1/completions" and self.body.get("stream"):
            *events, done = [line for line in content.splitlines() if line.startswith("data: ")]
            assert done == "data: [DONE]", content[-200:]
            found = [json.loads(event.removeprefix("data: ")) for event in events]
            assert not [event for event in found if "error" in event], content[-200:]
            return "".join(event["choices"][0]["text"] for event in found)
        if self.body.get("streamResponse"):
            lines = [json.loads(line) for line in content.splitlines()]
            assert lines[-1].get("isFinalChunk"), content[-200:]
            return "".join(line["text"] for line in lines)
        whole = json.loads(content)
        return str(whole["generated_text"] if "generated_text" in whole else whole["choices"][0]["text"])


def requests() -> list[Ask]:
    """Streams and whole answers of every API."""
    asks = []
    for number in range(3):
        prompt = PROMPTS[number]
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 40 + 40 * number, "seed": number, "ignore_eos": True}
        asks += [
            Ask("/v1/completions", body | {"stream": True}),
            Ask("/v1/completions", body | {"max_tokens": 30}),
            Ask(f"/v1/models/{MODEL}/generate", {"prompt": prompt, "length": 150, "topP": 0, "streamResponse": True}),
            Ask("/v1/aitextgen/generate", {"prompt": prompt, "max_length": 30, "seed": number}),
        ]
    return asks


@dataclass
class Load:
    """Clients that send the requests again and again, each on a connection of its own, until they are told to stop."""

    url: str
    headers: dict[str, str]
    texts: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    sent: dict[str, Ask] = field(default_factory=dict)
    is_stopped: bool = False

    async def run(self, asks: list[Ask]) -> None:
        numbers = count()
        await asyncio.gather(*(self._client(asks, numbers) for _ in range(NUM_CLIENTS)), self._long())

    async def _client(self, asks: list[Ask], numbers: Iterator[int]) -> None:
        async with self._connected() as client:
            while not self.is_stopped:
                number = next(numbers)
                await self.ask(client, f"load-{number}", asks[number % len(asks)])

    async def _long(self) -> None:
        async with self._connected() as client:
            await self.ask(client, "long-0", Ask("/v1/completions", LONG))

    async def ask(self, client: httpx.AsyncClient, request_id: str, ask: Ask) -> None:
        self.sent[request_id] = ask
        try:
            self.texts[request_id] = await ask.text(client, request_id)
        except (httpx.HTTPError, AssertionError) as error:
            self.failures.append(f"{request_id} {ask.path}: {error!r}")

    def _connected(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, headers=self.headers, timeout=180)


def write_config(path: Path, *, max_body_bytes: int, max_num_seqs: int, num_generators: int) -> Path:
    document = yaml.safe_load(LOCAL_CONFIG.read_text())
    [application] = document["applications"]
    application["args"]["http"] = {"max_body_bytes": max_body_bytes}
    application["args"]["limits"] = {"aitextgen": {"windows": []}}
    [model] = application["args"]["graph"]["models"]
    model["engine"]["max_num_seqs"] = max_num_seqs
    for deployment in application["deployments"]:
        if deployment["name"] == GENERATOR:
            deployment["autoscaling_config"] |= {"min_replicas": num_generators, "max_replicas": num_generators}
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture(params=["throughput", "plain"])
def service(request: pytest.FixtureRequest, new_home: Callable[[], Path], tmp_path: Path) -> Iterator[Service]:
    if request.param == "throughput" and sys.platform != "linux":
        pytest.skip("the throughput profile needs Linux")
    config = write_config(tmp_path / "before.yaml", max_body_bytes=1_000_000, max_num_seqs=32, num_generators=1)
    with running(new_home(), request.param, config=config) as service:
        yield service


def pids(service: Service) -> dict[str, set[int]]:
    return {name: {process.pid for process in service.replicas(name)} for name in DEPLOYMENTS}


def lines_of_ledger(service: Service) -> list[dict[str, Any]]:
    answer = httpx.get(f"{service.url}/v1/admin/ledger?format=jsonl", headers=service.headers, timeout=60)
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


async def undisturbed(service: Service, asks: list[Ask]) -> list[str]:
    async with httpx.AsyncClient(base_url=service.url, headers=service.headers, timeout=180) as client:
        return await asyncio.gather(*(ask.text(client, f"undisturbed-{n}") for n, ask in enumerate(asks)))


def test_no_request_is_lost_and_every_text_is_the_undisturbed_one(service: Service, tmp_path: Path) -> None:
    asks = [*requests(), Ask("/v1/completions", LONG)]
    expected = dict(zip(map(str, asks), asyncio.run(undisturbed(service, asks)), strict=True))
    before = pids(service)
    load = Load(service.url, service.headers)
    thread = threading.Thread(target=lambda: asyncio.run(load.run(requests())))
    thread.start()
    try:
        wait_until(lambda: len(load.texts) > NUM_CLIENTS, timeout_s=120, what="load")
        # Every replica is replaced.
        changed = {"max_body_bytes": 2000, "max_num_seqs": 24}
        service.deploy(write_config(tmp_path / "after.yaml", **changed, num_generators=1))

        def is_replaced() -> bool:
            return all(found and not found & before[name] for name, found in pids(service).items())

        wait_until(is_replaced, timeout_s=240, what="new replicas, and no old ones")
        if service.profile == "throughput":
            # None is, one comes; to Serve's proxy that is nothing of its own.
            service.deploy(write_config(tmp_path / "more.yaml", **changed, num_generators=2))
            wait_until(lambda: len(service.replicas(GENERATOR)) == 2, timeout_s=60, what="a second generator")
        wait_until(lambda: service.status().get("status") == "RUNNING", timeout_s=60, what="the end of the update")
        num_before = len(load.texts)
        wait_until(lambda: len(load.texts) > num_before + 10, timeout_s=60, what="answers of the new replicas")
    finally:
        load.is_stopped = True
        thread.join(120)
    assert not load.failures, "\n".join(load.failures)
    assert service.complete(prompt="x" * 3000).status_code == 413  # it is the new configuration that answers
    for request_id, text in load.texts.items():
        assert text == expected[str(load.sent[request_id])], request_id
    assert load.texts.keys() == load.sent.keys()
    check_ledger(lines_of_ledger(service), load)

    # What cannot be built changes nothing.
    service.deploy(write_config(tmp_path / "broken.yaml", **changed | {"max_body_bytes": 0}, num_generators=1))
    wait_until(lambda: service.status().get("status") == "DEPLOY_FAILED", timeout_s=120, what="the build has failed")
    assert service.complete().status_code == 200
    # A busy controller may take longer to answer than the probe waits for it.
    wait_until(lambda: httpx.get(f"{service.url}/ready", timeout=30).status_code == 200, timeout_s=60, what="ready")


def check_ledger(lines: list[dict[str, Any]], load: Load) -> None:
    """One line for each request, settled, and the same amounts for the same request."""
    found = {line["id"].partition(".")[0]: line for line in lines if line["id"].startswith(("load-", "long-"))}
    assert sorted(found) == sorted(load.sent)
    assert len(lines) == len(load.sent) + len(requests()) + 1
    assert {line["outcome"] for line in lines} == {"completed"}
    costs: dict[str, set[Any]] = {}
    for request_id, line in found.items():
        costs.setdefault(str(load.sent[request_id]), set()).add((line["completion_tokens"], line["cost"]))
    assert all(len(amounts) == 1 for amounts in costs.values()), costs
