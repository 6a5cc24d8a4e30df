"""Clients that remember, request by request, what they received."""

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any

import httpx

from serve_app.ledger.entries import Counts
from tests.integration.service import MODEL

PROMPT = "The lighthouse keeper counted the ships that passed, and every evening he wrote"


@dataclass
class Exchange:
    """One request as its client saw it. received: tokens of prompt and answer, and code points, after each event.
    ended: the answer came to its end. left: the client did not wait for it. broken: the server did not send it."""

    id: str
    dialect: str
    received: list[Counts] = field(default_factory=list)
    ended: bool = False
    left: bool = False
    broken: bool = False

    def add(self, prompt_tokens: int, completion_tokens: int, characters: int) -> None:
        self.received.append(Counts(prompt_tokens, completion_tokens, characters))


class Clients:
    """Keep sending requests of all kinds until they are told to stop; nothing that a server does stops them."""

    def __init__(self, url: str, headers: dict[str, str], *, seed: int) -> None:
        self.exchanges: list[Exchange] = []
        self.is_stopped = False
        self._random = random.Random(seed)
        self._client = httpx.AsyncClient(
            base_url=url, headers=headers, timeout=60, limits=httpx.Limits(keepalive_expiry=1)
        )

    async def run(self, number: int) -> None:
        async with self._client:
            await asyncio.gather(*(self._send_requests() for _ in range(number)))

    async def _send_requests(self) -> None:
        kinds: list[Callable[[Exchange], Any]] = [self._totalgpt_stream, self._inferkit_stream, self._whole]
        while not self.is_stopped:
            [kind] = self._random.choices(kinds, (5, 2, 1))
            exchange = Exchange(token_hex(8), "inferkit" if kind == self._inferkit_stream else "totalgpt")
            self.exchanges.append(exchange)
            try:
                await kind(exchange)
            except httpx.HTTPError:
                exchange.broken = True
            if not exchange.ended:
                await asyncio.sleep(0.2)

    async def _totalgpt_stream(self, exchange: Exchange) -> None:
        body = {
            "model": MODEL,
            "prompt": PROMPT,
            "max_tokens": self._random.randint(20, 120),
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        leaves_after = self._random.choice([None, None, None, 5])
        async with self._post("/v1/completions", exchange, body) as answer:
            if answer.status_code != 200:
                return
            num_events = 0
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    exchange.ended = True
                elif line.startswith("data: "):
                    usage = json.loads(line.removeprefix("data: ")).get("usage")
                    if usage is not None:
                        exchange.add(usage["prompt_tokens"], usage["completion_tokens"], 0)
                    num_events += 1
                if num_events == leaves_after:
                    exchange.left = True
                    return
        if not exchange.ended:
            exchange.broken = True

    async def _inferkit_stream(self, exchange: Exchange) -> None:
        body = {"prompt": PROMPT, "length": self._random.randint(50, 400), "streamResponse": True}
        characters = 0
        async with self._post(f"/v1/models/{MODEL}/generate", exchange, body) as answer:
            if answer.status_code != 200:
                return
            async for line in answer.aiter_lines():
                data = json.loads(line).get("data")
                if data is None:
                    break  # an error
                characters += len(data["text"])
                exchange.add(0, 0, characters)
                exchange.ended = data["isFinalChunk"]
        if not exchange.ended:
            exchange.broken = True

    async def _whole(self, exchange: Exchange) -> None:
        body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 30, "n": 2, "best_of": 3}
        async with self._post("/v1/completions", exchange, body) as answer:
            text = await answer.aread()
        if answer.status_code == 200:
            usage = json.loads(text)["usage"]
            exchange.add(usage["prompt_tokens"], usage["completion_tokens"], 0)
            exchange.ended = True

    def _post(self, path: str, exchange: Exchange, body: dict[str, Any]) -> Any:
        return self._client.stream("POST", path, json=body, headers={"x-request-id": exchange.id})
