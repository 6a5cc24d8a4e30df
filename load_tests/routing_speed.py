"""Prints what it brings that requests prefer the replica that has their adapter or their beginning.

Several replicas of the default model on this machine's Ray, first with Ray Serve's own choice of a replica (`load`),
then with the service's (`affinity`), in turns, each from cold caches. Two kinds of traffic: conversations, which share
instructions and then grow, and short requests for adapters, of which a replica holds a third.
"""

import argparse
import asyncio
import os
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Literal, get_args

import ray
from tokenizers import Tokenizer

from deployments.checkpoints.opening import open_artifacts
from deployments.config import AdapterCacheConfig, CheckpointConfig, EngineConfig, GraphConfig, ModelConfig
from deployments.engine.native.architecture import read_architecture
from deployments.engine.native.native_adapter import adapter_bytes
from deployments.model_source import default_home, resolve
from deployments.types import AdapterRef, GenerateRequest, SamplingParams
from load_tests.adapter_speed import random_adapters
from load_tests.adapter_sweep import SOURCE, publish
from load_tests.engine_speed import print_line
from load_tests.generators import Generators, start_generators
from load_tests.prompts import long_prompt

Routing = Literal["load", "affinity"]

_INSTRUCTIONS = 600
_DOCUMENT = 1600
_QUESTION = 160
"""Characters; about five are a token."""
_CONTEXT = 2048


@dataclass(slots=True)
class Found:
    """Of one kind of traffic: what it took. cached: share of the prompts' tokens that were found in the caches."""

    num_tokens: int = 0
    first_s: list[float] = field(default_factory=list)
    wall_s: float = 0.0
    cached: float = 0.0
    adapter_loads: int = 0


class Asking:
    def __init__(self, generators: Generators, found: Found) -> None:
        self._client = generators.client
        self._found = found
        self._numbers = count()

    async def ask(self, prompt: Sequence[int], max_tokens: int, adapter: AdapterRef | None = None) -> tuple[int, ...]:
        """The tokens of the answer."""
        number = next(self._numbers)
        sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True, temperature=0.8, top_p=0.9, seed=number)
        request = GenerateRequest(str(number), "model", tuple(prompt), sampling, cache_salt="account", adapter=adapter)
        began_at = time.perf_counter()
        token_ids: tuple[int, ...] = ()
        async with aclosing(self._client.stream(request)) as chunks:
            async for chunk in chunks:
                if not token_ids:
                    self._found.first_s.append(time.perf_counter() - began_at)
                token_ids += chunk.token_ids
        self._found.num_tokens += len(token_ids)
        return token_ids


@asynccontextmanager
async def measured(generators: Generators) -> AsyncIterator[tuple[Asking, Found]]:
    found = Found()
    before = await generators.snapshots()
    began_at = time.perf_counter()
    yield Asking(generators, found), found
    found.wall_s = time.perf_counter() - began_at
    after = await generators.snapshots()
    totals = [(after[pid].totals, stats.totals) for pid, stats in before.items()]
    prompt_tokens = sum(now.prompt_tokens - then.prompt_tokens for now, then in totals)
    found.cached = sum(now.cached_tokens - then.cached_tokens for now, then in totals) / prompt_tokens
    found.adapter_loads = sum(now.adapter_loads - then.adapter_loads for now, then in totals)


async def at_a_time(number: int, jobs: Iterable[Callable[[], Awaitable[None]]]) -> None:
    """Runs all of them, always so many at the same time."""
    waiting = iter(jobs)

    async def work() -> None:
        for job in waiting:
            await job()

    await asyncio.gather(*(work() for _ in range(number)))


async def converse(generators: Generators, encode: Callable[[str], list[int]], arguments: argparse.Namespace) -> Found:
    instructions = encode(long_prompt(0, _INSTRUCTIONS))
    async with measured(generators) as (asking, found):

        def conversation(number: int) -> Callable[[], Awaitable[None]]:
            async def run() -> None:
                prompt = instructions + encode(long_prompt(number, _DOCUMENT))
                for turn in range(arguments.turns):
                    prompt = prompt + encode(long_prompt(1000 * number + turn, _QUESTION))
                    prompt += await asking.ask(prompt, arguments.tokens)

            return run

        await at_a_time(arguments.clients, map(conversation, range(1, arguments.conversations + 1)))
    return found


async def use_adapters(
    generators: Generators,
    encode: Callable[[str], list[int]],
    adapters: Sequence[AdapterRef],
    arguments: argparse.Namespace,
) -> Found:
    choice = random.Random(1)  # noqa: S311  # the same traffic each time
    named = [choice.choice(adapters) for _ in range(arguments.requests)]
    async with measured(generators) as (asking, found):

        def request(number: int, adapter: AdapterRef) -> Callable[[], Awaitable[None]]:
            async def run() -> None:
                await asking.ask(encode(long_prompt(100_000 + number, _QUESTION)), arguments.tokens, adapter)

            return run

        await at_a_time(arguments.clients, (request(number, adapter) for number, adapter in enumerate(named)))
    return found


async def run(arguments: argparse.Namespace, home: Path) -> None:
    directory = resolve(SOURCE, default_home())
    architecture = read_architecture(directory)
    store = open_artifacts(CheckpointConfig(), home)
    (home / "made").mkdir()
    made = list(random_adapters(architecture, count=arguments.adapters, rank=arguments.rank))
    adapters = [publish(store, adapter, home / "made") for adapter in made]
    room = adapter_bytes(made[0], architecture) * arguments.room
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text).ids)

    engine = EngineConfig(num_threads=arguments.threads, kv_cache_bytes=arguments.cache_mib * 2**20)
    found: dict[tuple[str, Routing], list[Found]] = {}
    for _ in range(arguments.rounds):
        for routing in get_args(Routing):
            model = ModelConfig(
                id="model", source=str(directory), context_length=_CONTEXT, engine=engine, routing=routing
            )
            config = GraphConfig(
                models=(model,),
                adapters=AdapterCacheConfig(device_bytes=room),
            )
            async with start_generators(config, arguments.replicas) as generators:
                await asyncio.gather(*(generators.client.check_health() for _ in range(8)))
                spoken = await converse(generators, encode, arguments)
                found.setdefault(("conversations", routing), []).append(spoken)
                used = await use_adapters(generators, encode, adapters, arguments)
                found.setdefault(("adapters", routing), []).append(used)
    print_line("traffic, choice of the replica", "tokens/s", "first token, ms; found in caches; adapter loads")
    for (traffic, routing), rounds in found.items():
        rate = statistics.median(one.num_tokens / one.wall_s for one in rounds)
        first_ms = statistics.median(1000 * statistics.median(one.first_s) for one in rounds)
        cached = statistics.median(one.cached for one in rounds)
        loads = statistics.median(one.adapter_loads for one in rounds)
        print_line(f"{traffic}, {routing}", f"{rate:.0f}", f"{first_ms:.0f}; {cached:.0%}; {loads:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of each replica")
    parser.add_argument("--cache-mib", type=int, default=128, help="of each replica's KV cache")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=6, help="that ask at the same time")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--conversations", type=int, default=24)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--adapters", type=int, default=24)
    parser.add_argument("--room", type=int, default=8, help="adapters that each replica has room for")
    parser.add_argument("--requests", type=int, default=144, help="for adapters")
    parser.add_argument("--rank", type=int, default=8)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tritext-routing-") as temporary:
        home = Path(temporary)
        for name in ("models", "kernels"):
            (home / name).symlink_to(default_home() / name)
        # The replicas', which inherit it.
        os.environ |= {"TRITEXT_HOME": temporary, "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        ray.init(
            address="local", num_cpus=2, object_store_memory=100_000_000, include_dashboard=False, log_to_driver=False
        )
        try:
            asyncio.run(run(arguments, home))
        finally:
            ray.shutdown()


if __name__ == "__main__":
    main()
