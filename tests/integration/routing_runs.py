"""Three replicas on a real Ray Serve, and which of them get what: `python -m tests.integration.routing_runs`.

Prints what each scenario came to, as one JSON object. Everything lies under TRITEXT_HOME.
"""

import asyncio
import json
import os
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import aclosing
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import ray

from deployments.checkpoints.opening import open_artifacts
from deployments.config import AdapterCacheConfig, EngineConfig, GraphConfig, ModelConfig
from deployments.continuing import ContinuingGenerator
from deployments.engine.protocol import EngineStats
from deployments.engine.scheduler import Batch
from deployments.engine.torch_engine import TorchEngine
from deployments.errors import GenerationFailed, ReplicaLost
from deployments.ray_graph import RayGenerator, service_error
from deployments.types import AdapterRef, GenerateRequest, SamplingParams
from load_tests.generators import Generators, MeasuredReplica, start_generators
from tests.factories import make_tiny_model
from tests.unit.engine.adapters import adapter_tensors, config_of, make_adapter, write_adapter

NUM_REPLICAS = 3
NUM_TOKENS_BEFORE_FAULT = 20
STEP_TIMEOUT_S = 10.0
LINEARS = {f"model.layers.{layer}.self_attn.{name}_proj": (64, 64) for layer in range(2) for name in ("q", "o")}

_numbers = count()


class BreakableReplica(MeasuredReplica):
    async def break_at_a_token(self, pid: int, fault: type[BaseException] | None) -> None:
        """In this process: from when a sequence has so many tokens, each step of its model raises the fault, or never
        ends."""
        if os.getpid() != pid:
            return
        engine = self._node._engine
        assert isinstance(engine, TorchEngine) and engine._runner is not None
        is_broken = False
        run = engine._runner.run

        def run_or_raise(batch: Batch) -> Any:
            nonlocal is_broken
            is_broken |= any(len(item.sequence.output_token_ids) > NUM_TOKENS_BEFORE_FAULT for item in batch.scheduled)
            if is_broken and fault is None:
                threading.Event().wait()
            elif is_broken:
                raise fault("broken by the test")
            return run(batch)

        engine._runner.run = run_or_raise  # type: ignore[method-assign]


def new_tokens(number: int) -> tuple[int, ...]:
    """Such as no prompt had before."""
    return tuple(random.Random(next(_numbers)).choices(range(3, 250), k=number))


def make_request(prompt: tuple[int, ...], *, max_tokens: int = 4, adapter: AdapterRef | None = None) -> GenerateRequest:
    sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True, seed=5)
    return GenerateRequest("r", "tiny", prompt, sampling, adapter=adapter, cache_salt="account")


async def conversations(generators: Generators, _home: Path) -> dict[str, Any]:
    """Twelve, in turns of three prompts each; which part of the known beginning was computed once more."""
    prompts = [new_tokens(150) for _ in range(12)]
    recomputed = []
    before = await generators.snapshots()
    for turn in range(3):
        for number, prompt in enumerate(prompts):
            answer = await generators.client.generate(make_request(prompt))
            # The engine's blocks hold 16 tokens, and the last token is always computed.
            known = (len(prompt) - 30) // 16 * 16 if turn else 0
            recomputed.append(max(0, known - answer.usage.cached_tokens))
            prompts[number] = prompt + new_tokens(30)
    return {"recomputed": sum(recomputed), "replicas": len(await generators.busy_since(before))}


async def adapters(generators: Generators, home: Path) -> int:
    """Six, each asked for five times: how often one was loaded."""
    before = await generators.snapshots()
    refs = list(published(home, 6))
    for _ in range(5):
        for ref in refs:
            await generators.client.generate(make_request(new_tokens(100), adapter=ref))
    after = await generators.snapshots()
    return sum(after[pid].totals.adapter_loads - before[pid].totals.adapter_loads for pid in after)


async def crowd(generators: Generators, _home: Path) -> int:
    """Twenty requests of one beginning at the same time: how many replicas answered them."""
    beginning = new_tokens(150)
    await generators.client.generate(make_request(beginning))
    before = await generators.snapshots()
    requests = [make_request(beginning + new_tokens(5), max_tokens=300) for _ in range(20)]
    await asyncio.gather(*map(generators.client.generate, requests))
    return len(await generators.busy_since(before))


async def killed(generators: Generators, _home: Path) -> dict[str, bool]:
    """The replica that has a beginning dies in the middle of an answer; others ask for the same at that moment."""
    request = make_request(new_tokens(150), max_tokens=300)
    before = await generators.snapshots()
    expected = (await generators.client.generate(request)).sequences[0].token_ids
    [home] = await generators.busy_since(before)
    token_ids: tuple[int, ...] = ()
    others: list[asyncio.Task[Any]] = []
    async with aclosing(generators.client.stream(request)) as chunks:
        async for chunk in chunks:
            token_ids += chunk.token_ids
            if not others:
                psutil.Process(home).kill()
                others = [asyncio.create_task(generators.client.generate(request)) for _ in range(10)]
    answers = await asyncio.gather(*others)
    return {
        "stream": token_ids == expected,
        "others": all(answer.sequences[0].token_ids == expected for answer in answers),
        "elsewhere": home not in await snapshots_of_the_living(generators),
    }


async def with_fault(generators: Generators, fault: type[BaseException] | None) -> dict[str, bool]:
    """The model of the replica that has a beginning breaks in the middle of an answer; others ask for the same then."""
    request = make_request(new_tokens(150), max_tokens=300)
    before = await all_replicas(generators)
    expected = (await generators.client.generate(request)).sequences[0].token_ids
    [home] = await generators.busy_since(before)
    await generators.handle.broadcast("break_at_a_token", home, fault).results_async(timeout_s=60)

    async def until_replaced(_pause_s: float) -> None:
        await all_replicas(generators, but=home)

    client = ContinuingGenerator(RayGenerator(generators.handle, 120), sleep=until_replaced)
    token_ids: tuple[int, ...] = ()
    has_failed = False
    async with aclosing(client.stream(request)) as chunks:
        try:
            async for chunk in chunks:
                token_ids += chunk.token_ids
        except GenerationFailed:
            has_failed = True
    answers = await asyncio.gather(*(client.generate(request) for _ in range(10)))
    await all_replicas(generators, but=home)
    return {
        "stream": token_ids == expected,
        "failed": has_failed,
        "others": all(answer.sequences[0].token_ids == expected for answer in answers),
    }


async def dead_engine(generators: Generators, _home: Path) -> dict[str, bool]:
    """The step thread ends."""
    return await with_fault(generators, SystemExit)


async def stuck_engine(generators: Generators, _home: Path) -> dict[str, bool]:
    """A step never ends."""
    return await with_fault(generators, None)


async def broken_device(generators: Generators, _home: Path) -> dict[str, bool]:
    """Every step fails."""
    return await with_fault(generators, RuntimeError)


async def all_replicas(generators: Generators, *, but: int | None = None) -> dict[int, EngineStats]:
    """Waits until they are as many as they should be, none of them the process `but`."""
    async with asyncio.timeout(120):
        while True:
            found = await snapshots_of_the_living(generators)
            if len(found) == NUM_REPLICAS and but not in found:
                return found
            await asyncio.sleep(0.1)


async def snapshots_of_the_living(generators: Generators) -> dict[int, EngineStats]:
    """A replica that has died is still asked, and the whole fails, until the router is told of its death."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await generators.snapshots()
            except Exception as error:
                if not isinstance(service_error(error), ReplicaLost):
                    raise
            await asyncio.sleep(0.1)


def published(home: Path, number: int) -> Iterator[AdapterRef]:
    store = open_artifacts(make_config(home).checkpoints, home)
    for seed in range(number):
        adapter = make_adapter(LINEARS, seed=seed, size=3.0)
        directory = write_adapter(home / f"made-{seed}", adapter_tensors(adapter), config_of(adapter))
        stored = store.publish({path.name: path for path in directory.iterdir()}, {"kind": "adapter"})
        yield AdapterRef(f"ft_model_{seed}", stored.digest)


def make_config(home: Path) -> GraphConfig:
    engine = EngineConfig(dtype="float32", num_threads=1, kv_cache_bytes=4_000_000, step_timeout_s=STEP_TIMEOUT_S)
    model = ModelConfig(id="tiny", source=str(home / "tiny"), engine=engine)
    return GraphConfig(models=(model,), adapters=AdapterCacheConfig(device_bytes=4_000_000))


SCENARIOS = {
    "conversations": conversations,
    "adapters": adapters,
    "crowd": crowd,
    "killed": killed,
    "dead engine": dead_engine,
    "stuck engine": stuck_engine,
    "broken device": broken_device,
}


async def main(home: Path) -> dict[str, Any]:
    make_tiny_model(home / "tiny")
    async with start_generators(make_config(home), NUM_REPLICAS, BreakableReplica) as generators:
        return {name: await scenario(generators, home) for name, scenario in SCENARIOS.items()}


if __name__ == "__main__":
    ray.init(address="local", num_cpus=2, object_store_memory=100_000_000, include_dashboard=False, log_to_driver=False)
    try:
        sys.stdout.write(json.dumps(asyncio.run(main(Path(os.environ["TRITEXT_HOME"])))) + "\n")
    finally:
        ray.shutdown()
