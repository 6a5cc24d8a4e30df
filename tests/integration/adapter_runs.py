"""Adapters of a generator on a real Ray Serve, from a real S3 server: `python -m tests.integration.adapter_runs`.

Prints what each scenario came to, as one JSON object. Everything lies under TRITEXT_HOME.
"""

import asyncio
import json
import os
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

import ray
from ray import serve

from deployments.checkpoints.opening import open_artifacts
from deployments.config import AdapterCacheConfig, CheckpointConfig, EngineConfig, GraphConfig, ModelConfig
from deployments.continuing import ContinuingGenerator
from deployments.errors import ServiceError
from deployments.graph import Generator
from deployments.local_graph import LocalGraph
from deployments.ray_graph import RayGenerator, bind_graph, generator_name
from deployments.types import AdapterRef, GenerateRequest, SamplingParams
from tests.factories import make_tiny_model
from tests.integration.scenarios import only_replica
from tests.seaweedfs import SeaweedFS, running_seaweedfs
from tests.unit.engine.adapters import adapter_tensors, config_of, make_adapter, write_adapter

APP = "tiny"
LINEARS = {f"model.layers.{layer}.self_attn.{name}_proj": (64, 64) for layer in range(2) for name in ("q", "o")}
PROMPT = tuple(range(40, 75))


class Bench:
    def __init__(self, s3: SeaweedFS, home: Path) -> None:
        self.s3 = s3
        self._home = home
        model = ModelConfig(
            id="tiny",
            source=str(make_tiny_model(home / "tiny", dtype="float64")),
            context_length=256,
            engine=EngineConfig(dtype="float64", block_size=4, kv_cache_bytes=4_000_000),
        )
        # Room for three of these adapters.
        adapters = AdapterCacheConfig(device_bytes=3 * 4 * 2 * 4 * 64 * 8)
        self.config = GraphConfig(models=(model,), checkpoints=s3.config(), adapters=adapters)

    def publish(self, seed: int, *, size: int = 64, store: CheckpointConfig | None = None) -> AdapterRef:
        adapter = make_adapter(dict.fromkeys(LINEARS, (size, size)), seed=seed, size=3.0)
        directory = write_adapter(self._home / f"made-{seed}", adapter_tensors(adapter), config_of(adapter))
        store_of = open_artifacts(store or self.config.checkpoints, self._home)
        published = store_of.publish({path.name: path for path in directory.iterdir()}, {"kind": "adapter"})
        return AdapterRef(f"ft_model_{seed}", published.digest)

    async def expected(self, adapters: list[AdapterRef | None], max_tokens: int = 10) -> list[Any]:
        """What the same answers are in this process."""
        async with LocalGraph(self.config, home=self._home / "local") as graph:
            return [await told(graph.generators["tiny"], adapter, max_tokens) for adapter in adapters]


def request(adapter: AdapterRef | None, max_tokens: int = 10) -> GenerateRequest:
    sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True, seed=5)
    return GenerateRequest("r", "tiny", PROMPT, sampling, adapter=adapter)


async def told(generator: Generator, adapter: AdapterRef | None, max_tokens: int = 10) -> Any:
    """The tokens, or the name of the error."""
    try:
        answer = await generator.generate(request(adapter, max_tokens))
    except ServiceError as error:
        return type(error).__name__
    return list(answer.sequences[0].token_ids)


async def in_turns(bench: Bench, generator: Generator) -> bool:
    """More adapters than there is room for, and the model, all asked for at the same time."""
    wanted = [None, *(bench.publish(seed) for seed in range(1, 6))]
    expected = await bench.expected(wanted)
    assert len({tuple(tokens) for tokens in expected}) == len(wanted)
    return await asyncio.gather(*(told(generator, adapter) for adapter in wanted * 4)) == expected * 4


async def refused(bench: Bench, generator: Generator) -> list[Any]:
    """One that does not fit and one that is not there, with a good one between them."""
    wanted = [bench.publish(10, size=32), bench.publish(11), AdapterRef("ft_model_gone", "0" * 64)]
    answers = await asyncio.gather(*(told(generator, adapter) for adapter in wanted))
    good = (await bench.expected([wanted[1]]))[0]
    return [answer if answer != good else "good" for answer in answers]


async def replica_killed(bench: Bench, generator: Generator) -> list[bool]:
    """In the middle of a stream, when the object store does not answer any more: the next has the files."""
    adapter = bench.publish(20)
    expected = (await bench.expected([adapter], 200))[0]
    token_ids: list[int] = []
    is_killed = False
    async with aclosing(generator.stream(request(adapter, 200))) as chunks:
        async for chunk in chunks:
            token_ids += chunk.token_ids
            if not is_killed:
                is_killed = True
                only_replica(APP, generator_name("tiny")).kill()
                bench.s3.kill()
    return [token_ids == expected, await told(generator, adapter, 200) == expected]


async def store_gone(bench: Bench, generator: Generator) -> list[Any]:
    """Where an adapter is on no disk, and when the store is back."""
    bench.s3.start()
    adapter = bench.publish(30)
    bench.s3.kill()
    gone = await told(generator, adapter)
    bench.s3.start()
    return [gone, await told(generator, adapter) == (await bench.expected([adapter]))[0]]


SCENARIOS = {"in turns": in_turns, "refused": refused, "replica killed": replica_killed, "store gone": store_gone}


async def main(s3: SeaweedFS, home: Path) -> dict[str, Any]:
    bench = Bench(s3, home)
    await asyncio.to_thread(serve.start, proxy_location="Disabled")
    _, generators = bind_graph(bench.config, longest_call_s=10)
    handle = await asyncio.to_thread(serve.run, generators["tiny"], name=APP, route_prefix=None)
    generator = ContinuingGenerator(RayGenerator(handle, 60))
    return {name: await scenario(bench, generator) for name, scenario in SCENARIOS.items()}


if __name__ == "__main__":
    with running_seaweedfs() as server:
        os.environ.update(server.environment)
        ray.init(
            address="local", num_cpus=2, object_store_memory=100_000_000, include_dashboard=False, log_to_driver=False
        )
        try:
            sys.stdout.write(json.dumps(asyncio.run(main(server, Path(os.environ["TRITEXT_HOME"])))) + "\n")
        finally:
            serve.shutdown()
            ray.shutdown()
