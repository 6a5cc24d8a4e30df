"""The graph on a real Ray Serve, behind its real proxies, in both profiles."""

import asyncio
import json
import random
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.integration.service import GENERATOR, MODEL, Service, wait_until

pytestmark = pytest.mark.timeout(400)

DEPLOYMENTS = ("Ingress", "Tokenizer", "Dispatcher", GENERATOR)
NUM_CANCELLED = 200
NUM_LONG = 7000
SILENCE_S = 12
"""More than an answer about readiness is kept, and a probe waits for another one."""


def test_serve_status_shows_each_deployment_healthy_on_its_own(service: Service) -> None:
    wait_until(lambda: service.healthy_deployments() == set(DEPLOYMENTS), timeout_s=60, what="all healthy")


def test_every_printed_line_answers_with_text(service: Service) -> None:
    answers = [
        subprocess.run(line, shell=True, capture_output=True, text=True, check=True).stdout  # noqa: S602
        for line in service.commands
    ]
    aitextgen, inferkit, totalgpt = answers
    assert json.loads(aitextgen)["generated_text"].strip()
    lines = [json.loads(line) for line in inferkit.splitlines()]
    assert "".join(line["text"] for line in lines).strip()
    assert lines[-1]["isFinalChunk"] is True
    assert json.loads(totalgpt)["choices"][0]["text"].strip()


def test_streamed_lines_are_whole_in_every_http_chunk(service: Service) -> None:
    """The service flushes each alone; a proxy on a busy machine may join some that follow each other at once, even all
    of an answer that it was not there to pass on."""
    wait_until(lambda: num_chunks_of_whole_lines(service) > 5, timeout_s=300, what="an answer in many chunks")


def num_chunks_of_whole_lines(service: Service) -> int:
    """In how many HTTP chunks a streamed answer came. AssertionError where a line is not whole in its chunk."""
    request = {"prompt": {"text": "One day"}, "length": 1000, "forceNoEnd": True, "streamResponse": True}
    body = json.dumps(request).encode()
    head = (
        f"POST /v1/models/{MODEL}/generate HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {service.key}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
        connection.sendall(head.encode() + body)
        with connection.makefile("rb") as reader:
            assert reader.readline().split()[1] == b"200"
            while reader.readline().strip():
                pass
            chunks = []
            while size := int(reader.readline(), 16):
                chunks.append(reader.read(size))
                reader.readline()
    for chunk in chunks:
        assert chunk.endswith(b"\n")
        for line in chunk.splitlines():
            json.loads(line)
    return len(chunks)


def test_the_beginning_of_a_stream_arrives_before_its_end_is_made(service: Service) -> None:
    """Its end is so far away that the client, which leaves at the beginning, spares the model the most of it."""
    body = {"model": MODEL, "prompt": "Hello", "max_tokens": NUM_LONG, "stream": True, "ignore_eos": True}
    headers = service.headers | {"x-request-id": "left-at-its-beginning"}
    with httpx.stream("POST", f"{service.url}/v1/completions", json=body, headers=headers, timeout=300) as answer:
        beginning = next(chunk for chunk in answer.iter_raw() if chunk.startswith(b"data: "))  # not a sign of life
    assert b"[DONE]" not in beginning

    def settled() -> list[dict[str, Any]]:
        found = httpx.get(f"{service.url}/v1/admin/ledger?format=jsonl", headers=service.headers, timeout=60).text
        lines = [json.loads(line) for line in found.splitlines()]
        return [line for line in lines if line["id"].startswith("left-at-its-beginning") and line["settled_at"]]

    wait_until(lambda: bool(settled()), timeout_s=300, what="the request is settled")
    [line] = settled()
    assert line["outcome"] == "cancelled"
    assert line["completion_tokens"] < NUM_LONG


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "code"),
    [
        ("POST", "/v1/completions", b'{"model": "absent", "prompt": "x"}', 404, "model_not_found"),
        ("POST", "/v1/completions", b'{"model": ', 400, None),
        ("POST", "/v1/completions", b'{"prompt": "' + b"x" * 2_000_000 + b'"}', 413, "payload_too_large"),
        ("PUT", "/v1/completions", b"{}", 405, "method_not_allowed"),
        ("GET", "/nowhere", b"", 404, "not_found"),
    ],
)
def test_errors_keep_status_and_shape_through_the_proxies(
    service: Service, method: str, path: str, content: bytes, status: int, code: str | None
) -> None:
    headers = {**service.headers, "Content-Type": "application/json"}
    answer = httpx.request(method, service.url + path, content=content, headers=headers, timeout=60)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["message"]
    assert code is None or error["code"] == code
    assert len(answer.headers.get_list("x-request-id")) == 1


def test_a_request_without_a_key_is_refused(service: Service) -> None:
    answer = httpx.post(f"{service.url}/v1/completions", json={})
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "unauthenticated"


def test_what_the_engine_refuses_keeps_its_status(service: Service) -> None:
    answer = service.complete(prompt="word " * 20_000)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


async def test_requests_that_clients_cancel_leave_nothing_running(service: Service) -> None:
    dice = random.Random(7)
    limits = httpx.Limits(max_connections=None)

    async def ask(client: httpx.AsyncClient, wait_s: float, *, stream: bool) -> None:
        body = {"model": MODEL, "prompt": "Once", "max_tokens": 500, "ignore_eos": True, "stream": stream}
        try:
            async with asyncio.timeout(wait_s):
                async with client.stream("POST", "/v1/completions", json=body) as answer:
                    async for _ in answer.aiter_raw():
                        pass
        except TimeoutError:
            pass

    async with (
        httpx.AsyncClient(base_url=service.url, headers=service.headers, limits=limits, timeout=60) as client,
        asyncio.TaskGroup() as tasks,
    ):
        for number in range(NUM_CANCELLED):
            tasks.create_task(ask(client, dice.uniform(0.01, 6), stream=number % 2 == 0))

    def is_idle() -> bool:
        stats = service.engine_stats()
        held = stats["num_blocks"] - stats["num_free_blocks"]
        return (stats["num_running"], stats["num_waiting"], held) == (0, 0, 0)

    wait_until(is_idle, timeout_s=60, what="an idle engine")
    assert service.complete().status_code == 200


def answers(service: Service) -> bool:
    """To a prompt for which every deployment is asked: shorter ones need no Tokenizer."""
    try:
        return service.complete(prompt="word " * 500).status_code == 200
    except httpx.TransportError:  # by the ingress that was killed
        return False


def test_a_controller_that_says_nothing_makes_no_service_unready(service: Service) -> None:
    """Answers need none, and a load balancer that asks all machines must not be left without any."""

    def is_ready() -> bool:
        return httpx.get(f"{service.url}/ready", timeout=30).status_code == 200

    # Each of several ingresses must have found out once.
    wait_until(lambda: all(is_ready() for _ in range(10)), timeout_s=60, what="ready")
    [controller] = service.processes_called("ServeController")
    controller.suspend()
    try:
        told = [is_ready()]
        silent_since = time.monotonic()
        while time.monotonic() < silent_since + SILENCE_S:
            told.append(is_ready())
            time.sleep(0.1)
        assert answers(service)
    finally:
        controller.resume()
    assert all(told)
    wait_until(lambda: service.healthy_deployments() == set(DEPLOYMENTS), timeout_s=60, what="all healthy")
    assert is_ready()


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_a_killed_replica_is_replaced_without_a_restart(service: Service, deployment: str) -> None:
    killed = service.replicas(deployment)  # those under load may have become two
    assert killed
    for process in killed:
        process.kill()

    def is_replaced() -> bool:
        found = service.replicas(deployment)
        return bool(found) and not set(found) & set(killed)

    # Serve takes it for healthy until it has noticed.
    wait_until(is_replaced, timeout_s=120, what="another replica")
    wait_until(lambda: answers(service), timeout_s=120, what="an answer after the kill")
    wait_until(lambda: service.healthy_deployments() == set(DEPLOYMENTS), timeout_s=120, what="all healthy again")
    assert is_replaced()
    assert service.process.poll() is None


def test_the_service_listens_on_loopback_only(service: Service) -> None:
    """But for the ports on which Serve's replicas call one another: those ask for the cluster's token."""
    listening = [
        (name, connection.laddr.ip)
        for name, connections in service.ask_processes(lambda each: (each.name(), each.net_connections("tcp")))
        for connection in connections
        if connection.status == psutil.CONN_LISTEN
    ]
    outside = {name for name, address in listening if address not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")}
    assert listening
    assert all(name.startswith("ray::ServeRepli") for name in outside)


def test_ray_s_status_page_answers_nobody_without_the_token(service: Service) -> None:
    [address] = [word for word in service.output.split() if word.startswith("http://127.0.0.1") and word != service.url
                 and "/" not in word.removeprefix("http://")]  # fmt: skip
    wait_until(lambda: service.status() != {}, timeout_s=60, what="a status")
    assert httpx.get(f"{address}/api/serve/applications/").status_code == 401


def test_secrets_are_readable_by_their_owner_only(service: Service) -> None:
    for name in ("first_key", "ray_token", "key_pepper"):
        assert Path(service.home / name).stat().st_mode & 0o777 == 0o600
