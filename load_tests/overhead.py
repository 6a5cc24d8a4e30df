"""Prints what everything around the engine costs, for each profile: `python -m load_tests.overhead`.

The service (HTTP, keys, limits, ledger on SQLite, Tokenizer, Serve) and the bare engine of the same settings, in a
process of its own, take short turns on the same machine: the same prompts, each new to both, the same sampling. Added
time is the service's time to the first token, seen by its client, less that of the bare engine: prompt by prompt with
one client, quantile less quantile with many, where prompts wait for each other. Both stand ready all the time, so that
what one takes while it is idle meets both.
"""

import argparse
import asyncio
import json
import re
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import httpx
import psutil
import yaml

from load_tests.bare_engine import LOCAL
from load_tests.figures import percentile
from load_tests.http_server import HttpServer
from load_tests.own import new_home, serving
from load_tests.prompts import numbered_prompts
from load_tests.records import Sample
from load_tests.tables import table
from load_tests.traffic import Target
from load_tests.worker import Worker, worker

PROFILES = ("throughput", "plain")

_MANY = 32
_MAX_TOKENS = {1: 16, _MANY: 128}
_NUM_REQUESTS = {1: 16, _MANY: 64}
"""Of a turn, by the number of clients."""
_SMALL_REQUESTS = 512
_EXPORT_S = 12
"""Processes report their measurements every ten seconds."""

_MEASUREMENTS = re.compile(r"^Measurements for Prometheus: (\S+)$", re.MULTILINE)
_BUCKET = re.compile(
    r'^ray_tritext_framework_seconds_bucket\{(?=[^}]*dialect="totalgpt")[^}]*le="([^"]+)"[^}]*\} (\S+)$'
)


class Asked(Protocol):
    """The service, or the bare engine."""

    def generate(self, prompts: Sequence[str], *, concurrency: int, max_tokens: int) -> tuple[float, list[Sample]]:
        """Continues every prompt, with so many clients: the seconds that all of it took, and each one's times."""


@dataclass
class Side:
    """What one of the two did, by the number of clients: the turns in order, each with its requests."""

    turns: dict[int, list[tuple[float, list[Sample]]]] = field(default_factory=lambda: {1: [], _MANY: []})

    def first_ms(self, concurrency: int) -> list[float]:
        return [one.first_token_s * 1000 for _, samples in self.turns[concurrency] for one in samples]

    def tokens_per_s(self, concurrency: int) -> list[float]:
        """Of each turn."""
        return [sum(one.num_tokens for one in samples) / wall_s for wall_s, samples in self.turns[concurrency]]


@dataclass
class Measured:
    """One profile. small_per_s: requests in a second for answers of one token, a figure of each turn. framework:
    buckets of the service's own measure with one client, the upper bound in seconds with the count below it."""

    profile: str
    service: Side = field(default_factory=Side)
    engine: Side = field(default_factory=Side)
    small_per_s: list[float] = field(default_factory=list)
    framework: dict[float, float] = field(default_factory=dict)

    def added_ms(self) -> list[float]:
        """With one client, request by request."""
        pairs = zip(self.service.first_ms(1), self.engine.first_ms(1), strict=True)
        return [around - alone for around, alone in pairs]

    def kept(self) -> list[float]:
        """Throughput with many clients as a part of the bare engine's, turn by turn."""
        pairs = zip(self.service.tokens_per_s(_MANY), self.engine.tokens_per_s(_MANY), strict=True)
        return [around / alone for around, alone in pairs]


@contextmanager
def both(profile: str, engine_threads: int) -> Iterator[tuple[HttpServer, Worker]]:
    """The service and the bare engine, ready; allocator of the engine and threads are set as the launcher does it,
    unless `engine_threads` says how many threads the engine has."""
    env = {"OMP_NUM_THREADS": str(psutil.cpu_count(logical=False) or 1), "MALLOC_ARENA_MAX": "2"}
    document = yaml.safe_load(LOCAL.read_text(encoding="utf-8"))
    document["applications"][0]["args"]["graph"]["models"][0]["engine"]["num_threads"] = engine_threads
    with new_home() as home:
        config = home / "serve.yaml"
        config.write_text(yaml.safe_dump(document), encoding="utf-8")
        with (
            serving(home, "--profile", profile, "--config", str(config)) as service,
            worker([sys.executable, "-m", "load_tests.bare_engine", config], env=env) as engine,
        ):
            yield service, engine


def measure(measured: Measured, *, turns: int, number: int, engine_threads: int = 0) -> None:
    """Adds so many turns of each kind; `number` is of no other call to the same measurement."""
    with both(measured.profile, engine_threads) as (service, engine):
        take_turn(Measured(""), service, engine, number=2, concurrency=_MANY)  # warms both up
        before = framework_buckets(service)
        for turn in range(turns):
            take_turn(measured, service, engine, number=1000 * number + 10 * turn + 3, concurrency=1)
        for bound, count in framework_buckets(service).items():
            measured.framework[bound] = measured.framework.get(bound, 0) + count - before.get(bound, 0)
        for turn in range(turns):
            take_turn(measured, service, engine, number=1000 * number + 10 * turn + 4, concurrency=_MANY)
            measured.small_per_s.append(asyncio.run(small_answers(service.target, _SMALL_REQUESTS, _MANY)))


def take_turn(measured: Measured, service: Asked, engine: Asked, *, number: int, concurrency: int) -> None:
    """One turn of each; who is first changes."""
    prompts = numbered_prompts(number, _NUM_REQUESTS[concurrency])
    sides = [(service, measured.service), (engine, measured.engine)]
    for contender, side in sides if len(measured.engine.turns[concurrency]) % 2 else sides[::-1]:
        side.turns[concurrency].append(
            contender.generate(prompts, concurrency=concurrency, max_tokens=_MAX_TOKENS[concurrency])
        )


async def small_answers(target: Target, num_requests: int, concurrency: int) -> float:
    """Requests in a second, each for one token after a few, whole answers. Raises aiohttp.ClientResponseError."""
    numbers = iter(range(num_requests))
    headers = {"Authorization": f"Bearer {target.key}"}

    async def client(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            body: dict[str, Any] = {"model": target.model, "prompt": f"{number}. Hello", "max_tokens": 1}
            async with session.post(target.url, json=body, headers=headers) as answer:
                answer.raise_for_status()
                await answer.read()

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        started = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(concurrency)))
        return num_requests / (time.perf_counter() - started)


def framework_buckets(service: HttpServer) -> dict[float, float]:
    """What the service has measured itself until now: how many requests were below each bound in seconds."""
    time.sleep(_EXPORT_S)
    found = _MEASUREMENTS.search(service.program.log.read_text(encoding="utf-8"))
    if found is None:
        raise RuntimeError("the service has not said where its measurements are")
    buckets: dict[float, float] = {}
    for line in httpx.get(found[1], timeout=30).text.splitlines():
        if bucket := _BUCKET.match(line):
            bound = float(bucket[1].replace("+Inf", "inf"))
            buckets[bound] = buckets.get(bound, 0) + float(bucket[2])
    return buckets


def quantile_s(buckets: dict[float, float], part: float) -> float:
    """Where this part of what the buckets counted lies, as Prometheus reckons it: evenly spread within a bucket."""
    below_bound, below = 0.0, 0.0
    wanted = part * max(buckets.values())
    for bound, count in sorted(buckets.items()):
        if count >= wanted and count > below:
            return (
                bound
                if bound == float("inf")
                else below_bound + (bound - below_bound) * (wanted - below) / (count - below)
            )
        below_bound, below = bound, count
    return below_bound


def report(all_measured: Sequence[Measured]) -> str:
    """Markdown."""

    def pair(values: Sequence[float]) -> str:
        return f"{statistics.median(values):.1f}, {percentile(values, 95):.1f}"

    rows = []
    for one in all_measured:
        many = [side.first_ms(_MANY) for side in (one.service, one.engine)]
        added_many = [percentile(many[0], percent) - percentile(many[1], percent) for percent in (50, 95)]
        framework = [quantile_s(one.framework, part) * 1000 for part in (0.5, 0.95)]
        rows.append(
            [
                one.profile,
                pair(one.engine.first_ms(1)),
                pair(one.service.first_ms(1)),
                pair(one.added_ms()),
                f"{framework[0]:.1f}, {framework[1]:.1f}",
                pair(many[1]),
                f"{added_many[0]:.1f}, {added_many[1]:.1f}",
                f"{statistics.median(one.engine.tokens_per_s(_MANY)):.0f}",
                f"{statistics.median(one.service.tokens_per_s(_MANY)):.0f}",
                f"{statistics.median(one.kept()):.0%}",
                f"{statistics.median(one.small_per_s):.0f}",
            ]
        )
    heading = [
        "profile",
        "first token of the bare engine, 1 client (ms: median, p95)",
        "of the service",
        "added",
        "framework, by the service's own measure",
        f"first token of the bare engine, {_MANY} clients",
        "added by the service",
        "tokens/s of the bare engine",
        "of the service",
        "kept",
        f"answers of one token in a second, {_MANY} clients",
    ]
    # One measure a line: the table is read from top to bottom, profile beside profile.
    return table([heading[0], *(row[0] for row in rows)], zip(heading[1:], *(row[1:] for row in rows), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profiles", nargs="+", choices=PROFILES, default=list(PROFILES))
    parser.add_argument("--rounds", type=int, default=2, help="in each of which every profile is started once")
    parser.add_argument("--turns", type=int, default=4, help="of the service and of the bare engine, in a round")
    parser.add_argument(
        "--engine-threads",
        type=int,
        default=0,
        help="of both engines; fewer than there are cores leave some to what is around the engine, as a GPU does",
    )
    parser.add_argument("--raw", type=Path, help="file for the times of all requests, as JSON")
    arguments = parser.parse_args()
    all_measured = [Measured(profile) for profile in arguments.profiles]
    for number in range(arguments.rounds):
        for one in all_measured:
            measure(one, turns=arguments.turns, number=number, engine_threads=arguments.engine_threads)
            sys.stdout.write(f"{one.profile}, round {number + 1}: added {statistics.median(one.added_ms()):.1f} ms\n")
            sys.stdout.flush()
    if arguments.raw:
        arguments.raw.write_text(json.dumps([asdict(one) for one in all_measured]), encoding="utf-8")
    sys.stdout.write(report(all_measured) + "\n")


if __name__ == "__main__":
    main()
