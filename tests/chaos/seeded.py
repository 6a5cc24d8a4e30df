"""Requests whose answers are the same each time they are sent, and what their clients are told."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from tests.integration.prompts import PROMPTS


@dataclass(frozen=True)
class Answer:
    """What a client was told: texts, finish reasons and log-probabilities of its two sequences, and the usage."""

    texts: tuple[str, ...]
    finish_reasons: tuple[str, ...]
    logprobs: tuple[tuple[float, ...], ...]
    usage: tuple[int, int]


def body(number: int, model: str) -> dict[str, Any]:
    choice = random.Random(number)
    return {
        "model": model,
        "prompt": PROMPTS[number % len(PROMPTS)],
        "seed": number,
        "n": 2,
        "max_tokens": choice.randint(30, 120),
        "min_tokens": 20,
        "temperature": choice.choice([0.0, 0.8, 1.0]),
        "presence_penalty": choice.choice([0.0, 0.7]),
        "repetition_penalty": choice.choice([1.0, 1.2]),
        "stop": choice.choice([None, ["\n\n", " the end"], [". The"]]),
        "logprobs": choice.choice([None, 1]),
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def stream(
    client: httpx.AsyncClient, asked: dict[str, Any], request_id: str, *, heard: Callable[[], object] = lambda: None
) -> Answer:
    """Calls `heard` at each event. Raises AssertionError where anything but a whole answer comes."""
    texts, reasons = ["", ""], ["", ""]
    logprobs: list[list[float]] = [[], []]
    usage = None
    headers = {"x-request-id": request_id}
    async with client.stream("POST", "/v1/completions", json=asked, headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        is_done = False
        async for line in answer.aiter_lines():
            if not line or line.startswith(":"):  # a sign of life
                continue
            assert not is_done
            if line == "data: [DONE]":
                is_done = True
                continue
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            heard()
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                texts[choice["index"]] += choice["text"]
                reasons[choice["index"]] += choice["finish_reason"] or ""
                logprobs[choice["index"]] += (choice["logprobs"] or {}).get("token_logprobs", [])
    assert is_done and usage is not None
    counts = (usage["prompt_tokens"], usage["completion_tokens"])
    return Answer(tuple(texts), tuple(reasons), tuple(map(tuple, logprobs)), counts)


async def whole(client: httpx.AsyncClient, asked: dict[str, Any], request_id: str) -> Answer:
    """The same answer, not streamed."""
    asked = {name: value for name, value in asked.items() if name not in ("stream", "stream_options")}
    answer = await client.post("/v1/completions", json=asked, headers={"x-request-id": request_id})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    choices = sorted(told["choices"], key=lambda choice: choice["index"])
    return Answer(
        tuple(choice["text"] for choice in choices),
        tuple(choice["finish_reason"] for choice in choices),
        tuple(tuple((choice["logprobs"] or {}).get("token_logprobs", ())) for choice in choices),
        (told["usage"]["prompt_tokens"], told["usage"]["completion_tokens"]),
    )
