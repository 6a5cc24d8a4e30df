"""A contender over HTTP: a server process, from its first token on."""

import asyncio
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from load_tests.processes import Program, running
from load_tests.records import Sample
from load_tests.sse import StreamFailed
from load_tests.traffic import Target, send_all

_START_TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class HttpServer:
    """A server that streams completions."""

    program: Program
    first_token_s: float
    target: Target

    def generate(self, prompts: Sequence[str], *, concurrency: int, max_tokens: int) -> tuple[float, list[Sample]]:
        return asyncio.run(send_all(self.target, prompts, concurrency=concurrency, max_tokens=max_tokens))

    def prefill(self, num_prompt_tokens: int, repeats: int) -> list[float]:  # noqa: ARG002
        """Nothing: over HTTP the time to the first token says it."""
        return []


@contextmanager
def http_server(
    command: Sequence[str | Path], port: int, make_target: Callable[[], Target], *, env: Mapping[str, str] | None = None
) -> Iterator[HttpServer]:
    """The server, from its first token until the block ends.

    `make_target` is called once the port is open; it may raise OSError as long as what it needs is not there.
    Raises RuntimeError if the program ends by itself, TimeoutError if it answers nothing for five minutes.
    """
    started = time.perf_counter()
    with running(command, env=env) as program:
        reason = "its port stayed closed"
        while time.perf_counter() - started < _START_TIMEOUT_S:
            program.check()
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                target = make_target()
                before_s = time.perf_counter() - started
                _, samples = asyncio.run(send_all(target, ["Once upon a time"], concurrency=1, max_tokens=4))
            except* (StreamFailed, OSError, aiohttp.ClientError) as group:
                reason = repr(group.exceptions[0])
                time.sleep(0.05)
            else:
                yield HttpServer(program, before_s + samples[0].first_s, target)
                return
        raise TimeoutError(f"the server did not answer a first request: {reason}")
