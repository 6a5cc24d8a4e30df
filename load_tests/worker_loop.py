"""Runs inside a measured process that speaks no HTTP: the closed loop over its engine, commanded through its pipes.

Needs the standard library only, so that it runs in any environment. Each line of standard input is a command as JSON,
answered by a line on standard output; `load_tests.worker` is the other end.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol


class Loop(Protocol):
    """An engine that goes on by steps."""

    def encode(self, text: str) -> list[int]: ...

    def add(self, key: int, token_ids: list[int], max_tokens: int) -> None:
        """A request for exactly so many tokens, at temperature 0.8 and top_p 0.9."""

    def step(self) -> dict[int, tuple[int, bool]]:
        """By key: how many tokens have come, and whether they were the last."""


def generate(
    loop: Loop, prompts: Sequence[str], *, concurrency: int, max_tokens: int
) -> tuple[float, list[tuple[float, float, float, int]]]:
    """Keeps `concurrency` requests in work; the seconds in all, and for each when it was sent, first and last answered
    (from the beginning), and its number of tokens."""
    waiting = list(enumerate(prompts))[::-1]
    sent: dict[int, float] = {}
    first: dict[int, float] = {}
    counts: dict[int, int] = {}
    samples = []
    started = time.perf_counter()
    while waiting or sent:
        while waiting and len(sent) < concurrency:
            key, prompt = waiting.pop()
            sent[key], counts[key] = time.perf_counter() - started, 0
            loop.add(key, loop.encode(prompt), max_tokens)
        arrived = loop.step()
        now = time.perf_counter() - started
        for key, (num_tokens, ended) in arrived.items():
            counts[key] += num_tokens
            if num_tokens:
                first.setdefault(key, now)
            if ended:
                samples.append((sent.pop(key), first[key], now, counts[key]))
    return time.perf_counter() - started, samples


def prefill(loop: Loop, num_prompt_tokens: int, repeats: int) -> list[float]:
    """Seconds from a prompt to its one new token, of prompts that share no beginning, after one that does not count."""
    seconds = []
    for repeat in range(repeats + 1):
        first_id = 1000 * repeat + num_prompt_tokens  # what another length or repeat has begun with is not reused
        started = time.perf_counter()
        loop.add(0, list(range(first_id, first_id + num_prompt_tokens)), 1)
        while not any(ended for _, ended in loop.step().values()):
            pass
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def serve(loop: Loop) -> None:
    """Generates a token, says so, then obeys until standard input ends. What libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    generate(loop, ["Once upon a time"], concurrency=1, max_tokens=1)
    answer({"ready": True})
    for line in sys.stdin:
        command = json.loads(line)
        if "prompts" in command:
            wall_s, samples = generate(loop, **command)
            answer({"wall_s": wall_s, "samples": samples})
        else:
            answer({"seconds": prefill(loop, **command)})
