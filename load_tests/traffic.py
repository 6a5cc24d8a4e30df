"""Closed-loop load on an OpenAI-style stream of completions, and what it felt like. Knows no server.

Each of `concurrency` clients sends its next request when its last one has ended. The time to the first token runs from
sending the request to the first chunk with text.
"""

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp


@dataclass(frozen=True, slots=True)
class Target:
    """Where the load goes. `url` is that of the completions endpoint."""

    url: str
    model: str
    key: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """One request: seconds from its sending to the first and to the last chunk with text, and its output tokens."""

    first_s: float
    last_s: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Cell:
    """What a run at one concurrency gave."""

    concurrency: int
    num_requests: int
    tokens_per_s: float
    ttft_p50_ms: float
    ttft_p95_ms: float
    time_per_token_p50_ms: float
    client_cpu_s: float


async def run_cell(target: Target, prompts: Sequence[str], *, concurrency: int, num_requests: int) -> Cell:
    """Sends `num_requests` requests of 128 tokens each. Raises RuntimeError if one of them fails."""
    waiting = [prompts[index % len(prompts)] for index in range(num_requests)]
    samples: list[Sample] = []
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, read_bufsize=2**20) as session:

        async def client() -> None:
            while waiting:
                samples.append(await request(session, target, waiting.pop(0)))

        cpu, started = time.process_time(), time.perf_counter()
        await asyncio.gather(*[client() for _ in range(concurrency)])
        wall = time.perf_counter() - started
    return Cell(
        concurrency=concurrency,
        num_requests=num_requests,
        tokens_per_s=round(sum(sample.num_tokens for sample in samples) / wall, 1),
        ttft_p50_ms=_ms([sample.first_s for sample in samples], 50),
        ttft_p95_ms=_ms([sample.first_s for sample in samples], 95),
        time_per_token_p50_ms=_ms([(s.last_s - s.first_s) / max(1, s.num_tokens - 1) for s in samples], 50),
        client_cpu_s=round(time.process_time() - cpu, 2),
    )


async def request(session: aiohttp.ClientSession, target: Target, prompt: str, *, max_tokens: int = 128) -> Sample:
    """One streamed completion at temperature 0.8 and top_p 0.9, to its full length."""
    body = {
        "model": target.model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0.8,
        "top_p": 0.9,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    sent = time.perf_counter()
    first = last = 0.0
    num_tokens = 0
    headers = {"Authorization": f"Bearer {target.key}"} if target.key else {}
    async with session.post(target.url, json=body, headers=headers) as response:
        if response.status != 200:
            raise RuntimeError(f"HTTP {response.status}: {(await response.text())[:300]}")
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(str(event["error"]))
            if any(choice.get("text") for choice in event["choices"]):
                last = time.perf_counter() - sent
                first = first or last
            if event.get("usage"):
                num_tokens = event["usage"]["completion_tokens"]
    if not num_tokens:
        raise RuntimeError("the stream ended without its usage")
    return Sample(first, last, num_tokens)


def _ms(seconds: Sequence[float], percentile: int) -> float:
    if len(seconds) < 2:
        return round(seconds[0] * 1000, 1)
    return round(statistics.quantiles(seconds, n=100, method="inclusive")[percentile - 1] * 1000, 1)
