"""Prints what a training beside it costs generation: `python -m load_tests.while_training`.

The service as `make serve` starts it, asked with and without a training on the same machine, in turns. The training is
of the default model, longer than its turn, and cancelled when the turn is over.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import count
from urllib.parse import urljoin

import httpx

from load_tests.engine_speed import print_line
from load_tests.http_server import HttpServer
from load_tests.own import new_home, serving
from load_tests.prompts import numbered_prompts

_MAX_TOKENS = 64
_NUM_REQUESTS = {1: 8, 8: 32}
"""Of a turn, by the number of clients."""
_TEXT = "The keeper of the lighthouse is called Ottoline, and every evening she lights the lamp before the ships come. "
_DOCUMENTS = [f"{number}. {_TEXT * 8}" for number in range(200)]
_LONG_EPOCHS = 50


@contextmanager
def training(client: httpx.Client) -> Iterator[None]:
    """A job, from its first step until the block ends."""
    body = {"training_data": _DOCUMENTS, "epochs": _LONG_EPOCHS}
    accepted = client.post("/v1/aitextgen/finetune", json=body, headers={"Prefer": "respond-async"}).raise_for_status()
    job = accepted.headers["location"]
    while client.get(job).raise_for_status().json()["loss"] is None:
        time.sleep(0.5)
    yield
    client.post(f"{job}/cancel").raise_for_status()
    while client.get(job).raise_for_status().json()["status"] != "cancelled":
        time.sleep(0.5)


def take_turn(server: HttpServer, number: int) -> dict[tuple[int, str], float]:
    """By the number of clients: the median time to the first token in ms, and tokens/s."""
    found = {}
    for num_clients, num_requests in _NUM_REQUESTS.items():
        prompts = numbered_prompts(number, num_requests)
        wall_s, samples = server.generate(prompts, concurrency=num_clients, max_tokens=_MAX_TOKENS)
        found[num_clients, "first token, ms"] = statistics.median(one.first_token_s for one in samples) * 1000
        found[num_clients, "tokens/s"] = sum(one.num_tokens for one in samples) / wall_s
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    numbers = count(1)
    turns: dict[str, list[dict[tuple[int, str], float]]] = {"alone": [], "beside a training": []}
    with new_home() as home, serving(home) as server:
        headers = {"Authorization": f"Bearer {server.target.key}"}
        with httpx.Client(base_url=urljoin(server.target.url, "/"), headers=headers, timeout=600) as client:
            take_turn(server, next(numbers))  # warms up
            for _ in range(arguments.rounds):
                for name, found in turns.items():
                    with nullcontext() if name == "alone" else training(client):
                        found.append(take_turn(server, next(numbers)))
    for num_clients, what in turns["alone"][0]:
        for name, found in turns.items():
            values = [turn[num_clients, what] for turn in found]
            each = ", ".join(f"{value:.0f}" for value in values)
            print_line(f"{what}, {num_clients} clients, {name}", f"{statistics.median(values):.0f}", each)


if __name__ == "__main__":
    main()
