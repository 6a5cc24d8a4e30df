"""Ingress replicas killed at random under load: afterwards the ledger says what the clients received."""

import asyncio
import contextlib
import os
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import yaml
from psycopg.rows import dict_row

from serve_app.config import BillingConfig
from serve_app.ledger.billing import make_prices
from serve_app.ledger.entries import Counts, Outcome
from tests.chaos.streams import Clients, Exchange
from tests.integration.service import LOCAL_CONFIG, Service, running, wait_until

SEED = int(os.environ.get("TRITEXT_CHAOS_SEED", "1"))
NUM_KILLS = int(os.environ.get("TRITEXT_CHAOS_KILLS", "5"))
NUM_CLIENTS = 10
CREDIT = 10**13

Row = Mapping[str, Any]


@pytest.fixture
def service(new_home: Callable[[], Path], postgresql_url: str, tmp_path: Path) -> Iterator[Service]:
    """Two ingress replicas behind HAProxy, over PostgreSQL."""
    document = yaml.safe_load(LOCAL_CONFIG.read_text())
    [application] = document["applications"]
    application["args"]["database_url"] = postgresql_url
    for deployment in application["deployments"]:
        if deployment["name"] == "Ingress":
            del deployment["autoscaling_config"]
            deployment["num_replicas"] = 2
    config = tmp_path / "two.yaml"
    config.write_text(yaml.safe_dump(document))
    with running(new_home(), "throughput", config=config) as service:
        yield service


def query(url: str, statement: str, *parameters: Any) -> Sequence[Row]:
    with psycopg.connect(url, autocommit=True, row_factory=dict_row) as connection:
        cursor = connection.execute(statement.encode(), parameters)
        return cursor.fetchall() if cursor.description else []


def kill_at_random(service: Service, url: str, num_kills: int, seed: int) -> Mapping[str, Counts]:
    """Kills one of the two replicas again and again, each time when both answer and progress of something open is
    recorded. What of which line was recorded right before."""
    choice = random.Random(seed)
    recorded: dict[str, Counts] = {}

    def is_recorded() -> bool:
        found = {line["id"]: _counts(line) for line in query(url, "SELECT * FROM ledger WHERE settled_at IS NULL")}
        recorded.update(found)
        return any(counts != Counts() for counts in found.values())

    num_done = 0
    while num_done < num_kills:
        wait_until(lambda: len(service.replicas("Ingress")) >= 2, timeout_s=60, what="two ingress replicas")
        time.sleep(choice.uniform(2, 5))
        victim = choice.choice(service.replicas("Ingress"))
        wait_until(is_recorded, timeout_s=60, what="progress is recorded")
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended by itself meanwhile
            victim.kill()
            num_done += 1
    return recorded


@pytest.mark.timeout(400)
def test_the_ledger_is_what_the_clients_received(service: Service, postgresql_url: str) -> None:
    query(postgresql_url, "UPDATE accounts SET credit = %s", CREDIT)
    clients = Clients(service.url, service.headers, seed=SEED)
    load = threading.Thread(target=lambda: asyncio.run(clients.run(NUM_CLIENTS)))
    load.start()
    try:
        recorded = kill_at_random(service, postgresql_url, NUM_KILLS, SEED)
        time.sleep(3)
    finally:
        clients.is_stopped = True
        load.join(90)
    assert not load.is_alive()
    wait_until(
        lambda: not query(postgresql_url, "SELECT id FROM ledger WHERE settled_at IS NULL"),
        timeout_s=60,
        what="no reservation is open",
    )
    lines: dict[str, list[Row]] = defaultdict(list)
    for line in query(postgresql_url, "SELECT * FROM ledger"):
        lines[line["id"].partition(".")[0]].append(line)
    lost = [line for found in lines.values() for line in found if line["outcome"] == "lost"]
    summary = {
        "kills": NUM_KILLS,
        "requests": len(clients.exchanges),
        "ended": sum(exchange.ended for exchange in clients.exchanges),
        "left": sum(exchange.left for exchange in clients.exchanges),
        "broken in the middle": sum(bool(e.received) and e.broken for e in clients.exchanges),
        "lines": sum(map(len, lines.values())),
        "lost": len(lost),
        "received and not billed": sorted(_unbilled(clients.exchanges, lines)),
    }
    print(summary)  # noqa: T201  # shown when the test fails, or by `pytest -s`
    assert summary["broken in the middle"] > 0 and lost, summary

    prices = make_prices(BillingConfig())
    for exchange in clients.exchanges:
        found = lines.pop(exchange.id, [])
        billed = sum((_counts(line) for line in found), Counts())
        for line in found:
            assert line["cost"] == prices[line["dialect"]].cost(_counts(line), Outcome(line["outcome"]))
        check(exchange, billed, found)
    assert lines == {}
    for line in lost:  # what was recorded in time is not lost; how often that is done is shown with a clock elsewhere
        before = recorded.get(line["id"], Counts())
        assert line["completion_tokens"] >= before.completion_tokens and line["characters"] >= before.characters, line

    # What an account and a key have spent is the sum of their lines.
    [spent] = query(postgresql_url, "SELECT sum(cost) AS cost FROM ledger")
    [account] = query(postgresql_url, "SELECT credit, reserved FROM accounts")
    [key] = query(postgresql_url, "SELECT spent, reserved FROM keys")
    [usage] = query(postgresql_url, "SELECT sum(cost) AS cost, sum(requests) AS requests FROM usage_by_day")
    assert (CREDIT - account["credit"], account["reserved"]) == (spent["cost"], 0)
    assert (key["spent"], key["reserved"]) == (spent["cost"], 0)
    assert (usage["cost"], usage["requests"]) == (spent["cost"], summary["lines"])


def check(exchange: Exchange, billed: Counts, lines: Sequence[Row]) -> None:
    """Ended: billed as received. Broken: at most as received. Not in full only where the process died."""
    what = f"{exchange} {billed} {lines}"
    measured = _measured(exchange.dialect, billed)
    before_last, last = [Counts(), Counts(), *exchange.received][-2:]
    all_received = _measured(exchange.dialect, last)
    if exchange.ended:
        assert [line["outcome"] for line in lines if line["cost"]] == ["completed"], what
        assert measured == all_received, what
    elif exchange.received:
        if not exchange.left:  # what was under way when the client left counts as delivered
            assert measured[0] <= all_received[0] and measured[1] <= all_received[1], what
        if all(line["outcome"] != "lost" for line in lines):
            assert measured[1] >= _measured(exchange.dialect, before_last)[1], what
    else:  # no answer arrived; a whole one may have been settled just before its process was killed
        assert billed == Counts() or [line["outcome"] for line in lines if line["cost"]] == ["completed"], what


def _unbilled(exchanges: Sequence[Exchange], lines: Mapping[str, Sequence[Row]]) -> Iterator[tuple[str, int, int]]:
    """Of requests that broke in the middle: dialect, what was received, what of it was not billed."""
    for exchange in exchanges:
        if exchange.broken and exchange.received:
            billed = sum((_counts(line) for line in lines.get(exchange.id, ())), Counts())
            received = _measured(exchange.dialect, exchange.received[-1])[1]
            yield exchange.dialect, received, received - _measured(exchange.dialect, billed)[1]


def _measured(dialect: str, counts: Counts) -> tuple[int, int]:
    """What a client of the dialect can see of the counts."""
    return (counts.prompt_tokens, counts.completion_tokens) if dialect == "totalgpt" else (0, counts.characters)


def _counts(line: Row) -> Counts:
    return Counts(line["prompt_tokens"], line["completion_tokens"], line["characters"])
