"""Prints the milliseconds that the sampler takes for a step of one and of many rows; asserts nothing."""

import argparse
import sys
import time
from dataclasses import replace

import torch

from deployments.engine.sampler import Sampler, SamplerRow
from deployments.types import SamplingParams

CASES = {
    "greedy": SamplingParams(temperature=0.0),
    "greedy, penalties": SamplingParams(temperature=0.0, repetition_penalty=1.1, presence_penalty=0.5),
    "temperature 1": SamplingParams(),
    "temperature 0.8, min_p 0.05": SamplingParams(temperature=0.8, min_p=0.05),
    "temperature 0.8, top_p 0.9": SamplingParams(temperature=0.8, top_p=0.9),
    "temperature 0.8, top_k 40": SamplingParams(temperature=0.8, top_k=40),
    "top_k 5000": SamplingParams(top_k=5000),
    "temperature 100, top_p 0.99 (flat)": SamplingParams(temperature=100.0, top_p=0.99),
    "everything": SamplingParams(
        temperature=0.8,
        top_p=0.9,
        top_k=40,
        min_p=0.01,
        repetition_penalty=1.1,
        frequency_penalty=0.5,
        min_tokens=1000,
        logit_bias=((5, 1.0), (6, -1.0)),
        bad_words_token_ids=((3, 4), (7,)),
    ),
    "temperature 1, logprobs 5": SamplingParams(logprobs=5),
}


def milliseconds_per_step(params: SamplingParams, *, num_rows: int, vocab_size: int, num_steps: int) -> float:
    """The fastest of some steps whose outputs grow as they do in the engine; the prompt has 1,000 tokens."""
    sampler = Sampler(vocab_size, frozenset({0}))
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(vocab_size, (1000,), generator=generator).tolist()
    outputs: list[list[int]] = [[] for _ in range(num_rows)]
    requests = [replace(params, seed=seed) for seed in range(num_rows)]
    states = [sampler.new_state(request, prompt) for request in requests]
    # About as steep as the output of a small language model: the ten likeliest tokens hold two thirds of the mass.
    steepness = 2.0 * torch.log(torch.arange(1, vocab_size + 1).float())
    times = []
    for position in range(num_steps):
        order = torch.randperm(vocab_size, generator=generator)
        logits = (torch.randn(num_rows, vocab_size, generator=generator) - steepness * 0.75)[:, order]
        rows = [
            SamplerRow(request, 0, position, prompt, output, state)
            for request, output, state in zip(requests, outputs, states, strict=True)
        ]
        start = time.perf_counter()
        sampled = sampler.sample(logits, rows)
        times.append(time.perf_counter() - start)
        for output, token_id in zip(outputs, sampled.token_ids, strict=True):
            output.append(token_id)
    return min(times) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--vocab-size", type=int, default=49152)
    parser.add_argument("--steps", type=int, default=11)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    heading = "".join(f"{rows:>10}" for rows in arguments.rows)
    sys.stdout.write(f"{'milliseconds a step, rows:':36}{heading}\n")
    for name, params in CASES.items():
        times = [
            milliseconds_per_step(params, num_rows=rows, vocab_size=arguments.vocab_size, num_steps=arguments.steps)
            for rows in arguments.rows
        ]
        sys.stdout.write(f"{name:36}" + "".join(f"{milliseconds:10.2f}" for milliseconds in times) + "\n")


if __name__ == "__main__":
    main()
