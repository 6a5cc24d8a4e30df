"""Several processes deliver what one database holds, and some are killed: all is delivered, nothing twice at once."""

import asyncio
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from standardwebhooks import Webhook

from serve_app.stores.database import Database
from serve_app.stores.webhooks import SqlWebhooks
from serve_app.use_cases.webhooks import Webhooks
from tests.integration.stores.deliverer import OPEN
from tests.integration.stores.webhook_rows import COMPLETED, SECRETS, Hooks, make_hooks
from tests.webhook_receiver import Receiver, reset, running_receiver, status

NUM_PROCESSES = 3
NUM_EVENTS = 60
LEASE_S = 6.0
TCP_ESTABLISHED = 1


@contextmanager
def deliverers(url: str, *, timeout_s: float, margin_s: float) -> Iterator[list[subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "tests.integration.stores.deliverer", url, str(timeout_s), str(margin_s)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(NUM_PROCESSES)
    ]
    try:
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


async def make_endpoint(database: Database, receiver: Receiver) -> tuple[Hooks, str, str]:
    """With its id and its secret."""
    hooks = await make_hooks(database)
    hooks.clock.time = time.time() - 1
    webhooks = Webhooks(SqlWebhooks(database), SECRETS, OPEN)
    endpoint, secret = await webhooks.create("acme", receiver.url(), (COMPLETED,))
    return hooks, endpoint.id, secret


def is_sender_there(writer: asyncio.StreamWriter) -> bool:
    """It closes its connection when it gives up, before it sends again: what this process, if it stood still, finds
    waiting of both was not sent at once."""
    connection = writer.get_extra_info("socket")
    return bool(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_ESTABLISHED)


async def all_delivered(hooks: Hooks) -> None:
    async with asyncio.timeout(90):
        while {row["status"] for row in await hooks.rows("webhook_deliveries")} != {"succeeded"}:
            await asyncio.sleep(0.1)


@pytest.mark.timeout(150)
async def test_racing_processes_deliver_every_event_once(database: Database, database_url: str) -> None:
    async with running_receiver() as receiver:
        hooks, _, secret = await make_endpoint(database, receiver)
        events = {await hooks.happen() for _ in range(NUM_EVENTS)}
        with deliverers(database_url, timeout_s=30, margin_s=30):
            await all_delivered(hooks)
        assert Counter(request.headers["webhook-id"] for request in receiver.received) == dict.fromkeys(events, 1)
        for request in receiver.received:
            assert Webhook(secret).verify(request.body, request.headers)


@pytest.mark.timeout(150)
async def test_what_a_killed_process_was_sending_is_sent_again_and_nothing_twice_at_once(
    database: Database, database_url: str
) -> None:
    dice = random.Random(5)
    open_ones: dict[str, list[asyncio.StreamWriter]] = defaultdict(list)
    most: Counter[str] = Counter()
    async with running_receiver() as receiver:

        async def answer(writer: asyncio.StreamWriter) -> None:
            event = receiver.received[-1].headers["webhook-id"]
            open_ones[event].append(writer)
            most[event] = max(most[event], sum(map(is_sender_there, open_ones[event])))
            try:
                await asyncio.sleep(dice.uniform(0, 0.1))
                await dice.choice((status(204), status(500), reset))(writer)
            finally:
                open_ones[event].remove(writer)

        receiver.answer = answer
        hooks, _, _ = await make_endpoint(database, receiver)
        events = {await hooks.happen() for _ in range(NUM_EVENTS)}
        with deliverers(database_url, timeout_s=LEASE_S / 3, margin_s=LEASE_S * 2 / 3) as processes:
            await receiver.wait_for(10)
            processes[0].send_signal(signal.SIGKILL)
            await receiver.wait_for(20)
            processes[1].send_signal(signal.SIGSTOP)
            await asyncio.sleep(LEASE_S + 1)
            processes[1].send_signal(signal.SIGCONT)
            await all_delivered(hooks)
        assert most == dict.fromkeys(events, 1)
        assert all(row["fence"] >= row["attempts"] for row in await hooks.rows("webhook_deliveries"))
