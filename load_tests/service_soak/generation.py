"""Requests that generate, of all three APIs, and what their clients check of the answers.

Each is asked for at random: streamed or whole, to the end or left before it, with the model alone or an adapter.
"""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from load_tests.prompts import prompts
from load_tests.service_soak.exchange import End, Exchange, Received
from load_tests.service_soak.findings import Findings

TIMEOUT = aiohttp.ClientTimeout(total=300)
_TEXTS = prompts()
_SEEDS = 8
"""So many different requests are repeated all the time, to be answered the same."""


@dataclass(frozen=True, slots=True)
class Asking:
    """Who asks, and for which model: a configured one, or one that the key's account has trained."""

    session: aiohttp.ClientSession
    findings: Findings
    rng: random.Random
    key: str
    model: str

    @asynccontextmanager
    async def post(self, path: str, exchange: Exchange, body: dict[str, Any], **headers: str) -> AsyncIterator[Any]:
        """The answer, whose status is counted; what is not 200 is a problem."""
        all_headers = {"Authorization": f"Bearer {self.key}", "X-Request-Id": exchange.id} | headers
        async with self.session.post(path, json=body, headers=all_headers, timeout=TIMEOUT) as answer:
            self.findings.answers[exchange.kind, answer.status] += 1
            if answer.status != 200:
                self.findings.problem(f"{exchange.kind} {exchange.id}: {answer.status} {(await answer.text())[:300]}")
            yield answer

    def begin(self, kind: str) -> Exchange:
        return self.findings.begin(f"{kind}{' with an adapter' if self.model.startswith('ft_') else ''}")

    def prompt(self) -> str:
        """Often one that was seen before."""
        text = self.rng.choice(_TEXTS)
        return text if self.rng.random() < 0.5 else f"{self.rng.randrange(10**6)}. {text}"


async def stream(asking: Asking) -> None:
    """TotalGPT's streams, of a text or of a chat."""
    rng = asking.rng
    num_tokens = rng.choice((1, 8, 16, 32, 64))
    body: dict[str, Any] = {
        "model": asking.model,
        "max_tokens": num_tokens,
        "temperature": rng.choice((0.0, 0.7, 1.0)),
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    if rng.random() < 0.6:
        exchange = asking.begin("stream")
        path, body = "/v1/completions", body | {"prompt": asking.prompt(), "logprobs": rng.choice((None, None, 2))}
    else:
        exchange = asking.begin("chat stream")
        path, body = "/v1/chat/completions", body | {"messages": [{"role": "user", "content": asking.prompt()}]}
    leaves_after = rng.choice((None, None, None, 1, 3))
    sent = time.perf_counter()
    async with asking.post(path, exchange, body) as answer:
        if answer.status != 200:
            return
        async for event in _events(answer):
            if event is None:
                exchange.end = End.COMPLETE
                break
            if "error" in event:
                asking.findings.problem(f"{exchange.kind} {exchange.id}: {event['error']}")
                return
            if usage := event.get("usage"):
                exchange.received.append(Received(usage["prompt_tokens"], usage["completion_tokens"]))
            if exchange.first_s is None:
                exchange.first_s = time.perf_counter() - sent
                asking.findings.first_s.append(exchange.first_s)
            if len(exchange.received) == leaves_after:
                exchange.end = End.LEFT
                return
    if exchange.end is not End.COMPLETE:
        asking.findings.problem(f"{exchange.kind} {exchange.id}: it ended before its end")
    elif exchange.seen.completion_tokens != num_tokens:
        asking.findings.problem(f"{exchange.kind} {exchange.id}: {exchange.seen} of {num_tokens} tokens")


async def whole(asking: Asking) -> None:
    """TotalGPT's whole answers: several choices, several prompts, or a chat."""
    rng = asking.rng
    num_tokens, num_prompts, n = rng.choice((1, 8, 24)), rng.choice((1, 1, 3)), rng.choice((1, 1, 2))
    body = {"model": asking.model, "max_tokens": num_tokens, "ignore_eos": True, "n": n, "temperature": 0.9}
    if rng.random() < 0.5:
        exchange = asking.begin("whole")
        texts = [asking.prompt() for _ in range(num_prompts)]
        path, body = "/v1/completions", body | {"prompt": texts}
    else:
        exchange, num_prompts = asking.begin("chat"), 1
        path, body = "/v1/chat/completions", body | {"messages": [{"role": "user", "content": asking.prompt()}]}
    async with asking.post(path, exchange, body) as answer:
        if answer.status != 200:
            return
        found = await answer.json()
    exchange.received.append(Received(found["usage"]["prompt_tokens"], found["usage"]["completion_tokens"]))
    exchange.end = End.COMPLETE
    if len(found["choices"]) != n * num_prompts or exchange.seen.completion_tokens != n * num_prompts * num_tokens:
        asking.findings.problem(f"{exchange.kind} {exchange.id}: {len(found['choices'])} choices, {exchange.seen}")


async def inferkit(asking: Asking) -> None:
    """InferKit's, streamed or whole."""
    is_streamed, length = asking.rng.random() < 0.6, asking.rng.choice((10, 60, 200))
    exchange = asking.begin("inferkit stream" if is_streamed else "inferkit")
    body = {"prompt": {"text": asking.prompt()}, "length": length, "streamResponse": is_streamed}
    leaves_after = asking.rng.choice((None, None, None, 2)) if is_streamed else None
    characters, sent = 0, time.perf_counter()
    async with asking.post(f"/v1/models/{asking.model}/generate", exchange, body) as answer:
        if answer.status != 200:
            return
        async for line in answer.content:
            data = json.loads(line).get("data")
            if data is None:
                asking.findings.problem(f"{exchange.kind} {exchange.id}: {line[:300]!r}")
                return
            characters += len(data["text"])
            exchange.received.append(Received(characters=characters))
            if is_streamed and exchange.first_s is None:
                exchange.first_s = time.perf_counter() - sent
                asking.findings.first_s.append(exchange.first_s)
            if data["isFinalChunk"]:
                exchange.end = End.COMPLETE
                break
            if len(exchange.received) == leaves_after:
                exchange.end = End.LEFT
                return
    if exchange.end is not End.COMPLETE or characters > length:
        asking.findings.problem(f"{exchange.kind} {exchange.id}: {characters} of {length} characters, {exchange.end}")


async def aitextgen(asking: Asking) -> None:
    """AITextGen's answers, which are whole."""
    exchange, length = asking.begin("aitextgen"), asking.rng.choice((5, 20, 50))
    body = {"prompt": asking.prompt(), "max_length": length, "model": asking.model}
    async with asking.post("/v1/aitextgen/generate", exchange, body) as answer:
        if answer.status != 200:
            return
        found = await answer.json()
    exchange.received.append(Received(completion_tokens=found["tokens_generated"]))
    exchange.end = End.COMPLETE
    if found["tokens_generated"] > length:
        asking.findings.problem(f"{exchange.kind} {exchange.id}: {found['tokens_generated']} of {length} tokens")


async def repeated(asking: Asking) -> None:
    """One of a few requests with a seed, by one of two APIs: the text must be what it was the first time."""
    seed = asking.rng.randrange(_SEEDS)
    name = f"{asking.model} with seed {seed}"
    common = {"model": asking.model, "prompt": _TEXTS[seed], "temperature": 0.9, "top_p": 0.9, "seed": seed}
    if asking.rng.random() < 0.5:
        exchange = asking.begin("repeated in aitextgen")
        async with asking.post("/v1/aitextgen/generate", exchange, common | {"max_length": 24}) as answer:
            if answer.status != 200:
                return
            found = await answer.json()
        text, received = found["generated_text"], Received(completion_tokens=found["tokens_generated"])
    else:
        exchange = asking.begin("repeated stream")
        options = {"max_tokens": 24, "stream": True, "stream_options": {"include_usage": True}}
        text, received = "", Received()
        async with asking.post("/v1/completions", exchange, common | options) as answer:
            if answer.status != 200:
                return
            async for event in _events(answer):
                if event is not None:
                    text += "".join(choice["text"] for choice in event["choices"])
                    if usage := event.get("usage"):
                        received = Received(usage["prompt_tokens"], usage["completion_tokens"])
    exchange.received.append(received)
    exchange.end = End.COMPLETE
    asking.findings.repeated(name, text)


async def kept(asking: Asking) -> None:
    """A request with an Idempotency-Key, sent twice: it runs once, and is answered the same."""
    exchange = asking.begin("kept")
    body = {"model": asking.model, "prompt": asking.prompt(), "max_tokens": 16}
    headers = {"Idempotency-Key": exchange.id}
    async with asking.post("/v1/completions", exchange, body, **headers) as answer:
        if answer.status != 200:
            return
        first = await answer.json()
    exchange.received.append(Received(first["usage"]["prompt_tokens"], first["usage"]["completion_tokens"]))
    exchange.end = End.COMPLETE
    async with asking.post("/v1/completions", exchange, body, **headers) as answer:
        if answer.headers.get("Idempotent-Replayed") != "true" or await answer.json() != first:
            asking.findings.problem(f"{exchange.kind} {exchange.id}: the repeated request was answered otherwise")


async def abandoned(asking: Asking) -> None:
    """A whole answer that its client does not wait for."""
    exchange = asking.begin("abandoned")
    body = {"model": asking.model, "prompt": asking.prompt(), "max_tokens": 64, "ignore_eos": True, "n": 2}
    exchange.end = End.LEFT

    async def send() -> None:
        async with asking.post("/v1/completions", exchange, body) as answer:
            await answer.read()

    try:
        await asyncio.wait_for(send(), asking.rng.choice((0.005, 0.02, 0.1, 0.3)))
    except TimeoutError:
        asking.findings.answers[exchange.kind, 0] += 1


KINDS: dict[Callable[[Asking], Any], int] = {
    stream: 6, whole: 3, inferkit: 4, aitextgen: 3, repeated: 3, kept: 1, abandoned: 2
}  # fmt: skip
"""With how often each is sent."""


async def _events(answer: aiohttp.ClientResponse) -> AsyncIterator[Any]:
    """The events of a stream; None for the mark of its end."""
    async for line in answer.content:
        if line.startswith(b"data: "):
            yield None if line.startswith(b"data: [DONE]") else json.loads(line[6:])
