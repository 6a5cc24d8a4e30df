"""Prints the milliseconds to the first token of a request for an adapter, by where the adapter is when it comes.

`object store`: nobody on this machine has used it; `disk`: its files are here; `memory`: it was read and has left the
device; `device`: it was used just now; `base`: the model alone. With `--url s3://bucket/prefix --endpoint-url ...` and
the credentials in the environment the object store is that one, else a directory.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

from tokenizers import Tokenizer

from deployments.checkpoints.opening import open_artifacts
from deployments.config import AdapterCacheConfig, CheckpointConfig, EngineConfig, ModelConfig
from deployments.engine.native.architecture import read_architecture
from deployments.engine.native.native_adapter import adapter_bytes
from deployments.generator import GeneratorNode
from deployments.model_source import default_home, resolve
from deployments.types import AdapterRef, GenerateRequest, SamplingParams
from load_tests.adapter_speed import random_adapters
from load_tests.adapter_sweep import SOURCE, publish
from load_tests.engine_speed import print_line
from load_tests.prompts import prompts


class Asking:
    """Requests of one generator, none of which finds its prompt in the cache."""

    def __init__(self, node: GeneratorNode, texts: Sequence[list[int]]) -> None:
        self._node = node
        self._texts = texts
        self._number = 0

    def request(self, adapter: AdapterRef | None, max_tokens: int) -> GenerateRequest:
        self._number += 1
        name = str(self._number)
        sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True, seed=self._number)
        text = self._texts[self._number % len(self._texts)]
        return GenerateRequest(name, "model", text, sampling, cache_salt=name, adapter=adapter)

    async def first_token_ms(self, adapter: AdapterRef | None) -> float:
        began_at = time.perf_counter()
        async with aclosing(self._node.stream(self.request(adapter, 8))) as chunks:
            await anext(chunks)
            return (time.perf_counter() - began_at) * 1000

    @asynccontextmanager
    async def beside(self, number: int) -> AsyncIterator[None]:
        """While so many others generate with the model alone, one after the other."""

        async def generate() -> None:
            while True:
                await self._node.generate(self.request(None, 64))

        tasks = [asyncio.create_task(generate()) for _ in range(number)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def measure(
    node: GeneratorNode, texts: Sequence[list[int]], adapters: Sequence[AdapterRef], *, busy: int
) -> dict[str, list[float]]:
    """The device has room for one adapter; what has left it is on the disk."""
    asking = Asking(node, texts)
    await asking.first_token_ms(None)
    found: dict[str, list[float]] = {"object store": [], "disk": [], "device": [], "base": []}
    async with asking.beside(busy):
        for first, second in zip(adapters[::2], adapters[1::2], strict=True):
            for adapter in (first, second):
                found["object store"].append(await asking.first_token_ms(adapter))
            for adapter in (first, second):
                found["disk"].append(await asking.first_token_ms(adapter))
                found["device"].append(await asking.first_token_ms(adapter))
                found["base"].append(await asking.first_token_ms(None))
    return found


async def run(arguments: argparse.Namespace, home: Path) -> None:
    model_home = default_home()
    directory = resolve(SOURCE, model_home)
    architecture = read_architecture(directory)
    for name in ("models", "kernels"):
        (home / name).symlink_to(model_home / name)
    checkpoints = CheckpointConfig(url=arguments.url, endpoint_url=arguments.endpoint_url, region=arguments.region)
    store = open_artifacts(checkpoints, home)
    (home / "made").mkdir()
    made = list(random_adapters(architecture, count=2 * arguments.pairs, rank=arguments.rank))
    adapters = [publish(store, adapter, home / "made") for adapter in made]
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    texts = [tokenizer.encode(text).ids for text in prompts()]
    one = adapter_bytes(made[0], architecture)
    print_line(f"rank {arguments.rank}, {one / 1e6:.1f} MB on the device", "median", "slowest, requests; ms")
    engine = EngineConfig(num_threads=arguments.threads)
    node = GeneratorNode(
        ModelConfig(id="model", source=str(directory), engine=engine),
        home,
        adapters=AdapterCacheConfig(device_bytes=one),
        checkpoints=checkpoints,
    )
    await node.start()
    found = await measure(node, texts, adapters, busy=arguments.busy)
    await node.stop()
    for place, times in found.items():
        print_line(place, f"{statistics.median(times):.0f}", f"{max(times):.0f}, {len(times)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url")
    parser.add_argument("--endpoint-url")
    parser.add_argument("--region")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=10, help="of adapters that take turns")
    parser.add_argument("--busy", type=int, default=0, help="requests that generate meanwhile")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tritext-load-") as temporary:
        asyncio.run(run(arguments, Path(temporary)))


if __name__ == "__main__":
    main()
