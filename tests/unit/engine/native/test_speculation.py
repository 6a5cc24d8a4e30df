"""Guessing ahead on the native kernels: the same tokens and log-probabilities to the last bit, in fewer steps."""

from pathlib import Path

import pytest

from deployments.config import EngineConfig
from deployments.engine.core import EngineCore
from deployments.engine.native.native_runner import NativeRunner
from deployments.engine.sampler import Sampler
from deployments.engine.sequence import Sequence
from deployments.types import SamplingParams

from .models import make_runner, token_ids


def answers(runner: NativeRunner, config: EngineConfig, sampling: dict[str, float]) -> tuple[list[object], int]:
    """Every delta's parts, sequence by sequence, and the number of steps. To check the engine changes nothing."""
    core = EngineCore(runner, Sampler(101, frozenset(), "cpu", draw=runner.draw), config)
    for key, length in enumerate((3, 20, 45)):
        params = SamplingParams(max_tokens=60, seed=key, logprobs=2, **sampling)  # type: ignore[arg-type]
        prompt = tuple(token_ids(key, length, 101))
        core.add(key, [Sequence(key, key, 0, prompt, params, frozenset(), 200)])
    given_to: list[list[object]] = [[], [], []]
    num_steps = 0
    while core.has_work:
        num_steps += 1
        core.check()
        for group, deltas in core.step().deltas.items():
            for delta in deltas:
                given_to[group] += zip(delta.token_ids, delta.logprobs, strict=True)
                given_to[group] += [delta.finish_reason] if delta.finish_reason else []
    return [part for parts in given_to for part in parts], num_steps


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"temperature": 0.6, "top_p": 0.5},
        {"temperature": 0.6, "top_k": 3, "frequency_penalty": 0.1},
    ],
)
def test_the_same_bits_in_fewer_steps(tiny_model: Path, kernel_cache: Path, sampling: dict[str, float]) -> None:
    runner = make_runner(tiny_model, kernel_cache)
    plain, num_plain_steps = answers(runner, EngineConfig(speculation=None), sampling)
    guessed, num_steps = answers(runner, EngineConfig(), sampling)
    assert guessed == plain
    assert num_steps < num_plain_steps == 60
