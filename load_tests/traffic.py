"""Closed-loop load on an OpenAI-style stream of completions. Knows no server.

Each of `concurrency` clients sends its next request when its last one has ended. The first token is seen with the first
chunk that has text.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from load_tests.records import Sample
from load_tests.sse import StreamFailed, StreamTimer

_REQUEST = {
    "temperature": 0.8,
    "top_p": 0.9,
    "ignore_eos": True,
    "stream": True,
    "stream_options": {"include_usage": True},
}


@dataclass(frozen=True, slots=True)
class Target:
    """Where the load goes: `url` is that of the completions endpoint.

    `changes` are fields that this server wants otherwise, to the same effect; None leaves a field out.
    """

    url: str
    model: str
    key: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)

    def body(self, prompt: str, max_tokens: int) -> dict[str, Any]:
        content = {"model": self.model, "prompt": prompt, "max_tokens": max_tokens} | _REQUEST | dict(self.changes)
        return {name: value for name, value in content.items() if value is not None}


async def send_all(
    target: Target, prompts: Sequence[str], *, concurrency: int, max_tokens: int
) -> tuple[float, list[Sample]]:
    """A request for each prompt; the seconds that all of them took, and each one's. Raises StreamFailed or OSError."""
    waiting = list(reversed(prompts))
    samples: list[Sample] = []
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True), read_bufsize=2**20
    ) as session:
        started = time.perf_counter()

        async def client() -> None:
            while waiting:
                samples.append(await _send(session, target, waiting.pop(), max_tokens=max_tokens, started=started))

        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(client())
        return time.perf_counter() - started, samples


async def _send(
    session: aiohttp.ClientSession, target: Target, prompt: str, *, max_tokens: int, started: float
) -> Sample:
    timer = StreamTimer()
    headers = {"Authorization": f"Bearer {target.key}"} if target.key else {}
    body = target.body(prompt, max_tokens)
    sent_s = time.perf_counter() - started
    async with session.post(target.url, json=body, headers=headers) as response:
        if response.status != 200:
            raise StreamFailed(f"HTTP {response.status}: {(await response.text())[:300]}")
        async for line in response.content:
            timer.line(line, time.perf_counter() - started)
    return Sample(sent_s, timer.first(), timer.last_s, timer.num_tokens)
