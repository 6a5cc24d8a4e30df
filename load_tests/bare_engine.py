"""Runs in a process of its own: the engine as the Generator of a Serve config file makes it, asked directly.

Its pipes carry the questions; the other end is `load_tests.worker`. Prompts are encoded, as the Tokenizer does it,
before the time runs.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from deployments.config import GraphConfig
from deployments.generator import make_torch_engine
from deployments.model_files import read_model_files
from deployments.model_source import default_home, resolve
from deployments.start_phases import StartPhases
from deployments.tokenizer import TokenizerNode
from deployments.types import EncodeRequest, GenerateRequest, SamplingParams, TextPrompt

LOCAL = Path(__file__).parents[1] / "infra/serve/local.yaml"

Times = tuple[float, float, float, int]


class BareEngine:
    """Closed-loop clients of an engine, in its process."""

    def __init__(self, serve_config: Path) -> None:
        document = yaml.safe_load(serve_config.read_text(encoding="utf-8"))
        config = GraphConfig.model_validate(document["applications"][0]["args"]["graph"])
        home, self._model = default_home(), config.models[0]
        files = read_model_files(resolve(self._model.source, home))
        self._engine = make_torch_engine(self._model, files, home, StartPhases())
        self._tokenizer = TokenizerNode(config, home)
        self._number = 0

    async def start(self) -> None:
        await self._engine.start()
        await self._tokenizer.start()

    async def generate(
        self, prompts: Sequence[str], *, concurrency: int, max_tokens: int, wants_pieces: bool = True
    ) -> tuple[float, list[Times]]:
        """Keeps `concurrency` requests in work; the seconds in all, and for each when it was sent, first and last
        answered (from the beginning), and its number of tokens."""
        encoded = await self._tokenizer.encode(EncodeRequest(self._model.id, tuple(map(TextPrompt, prompts))))
        waiting = list(encoded.prompt_token_ids)[::-1]
        times: list[Times] = []
        started = time.perf_counter()

        async def client() -> None:
            while waiting:
                times.append(await self._send(waiting.pop(), max_tokens, wants_pieces, started))

        await asyncio.gather(*(client() for _ in range(concurrency)))
        return time.perf_counter() - started, times

    async def _send(self, token_ids: tuple[int, ...], max_tokens: int, wants_pieces: bool, started: float) -> Times:
        self._number += 1
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.8, top_p=0.9, ignore_eos=True, seed=self._number)
        request = GenerateRequest(str(self._number), self._model.id, token_ids, sampling)
        sent_s, first_s, num_tokens = time.perf_counter() - started, 0.0, 0
        generation = self._engine.submit(request, wants_pieces=wants_pieces)
        async for deltas in generation:
            first_s = first_s or time.perf_counter() - started
            num_tokens += sum(len(delta.token_ids) for delta in deltas)
        return sent_s, first_s, time.perf_counter() - started, num_tokens


async def main(serve_config: Path) -> None:
    """Generates a token, says so, then obeys until standard input ends. What libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    engine = BareEngine(serve_config)
    await engine.start()
    await engine.generate(["Once upon a time"], concurrency=1, max_tokens=1)
    answer({"ready": True})
    while line := await asyncio.to_thread(sys.stdin.readline):
        wall_s, samples = await engine.generate(**json.loads(line))
        answer({"wall_s": wall_s, "samples": samples})


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
