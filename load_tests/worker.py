"""A contender without HTTP: a process that runs `load_tests.worker_loop`, commanded through its pipes."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from load_tests.processes import Program, running
from load_tests.records import Sample


@dataclass(slots=True)
class Worker:
    """The near end of the pipes. Raises RuntimeError when the process ends."""

    program: Program
    first_token_s: float = 0.0

    def generate(self, prompts: Sequence[str], *, concurrency: int, max_tokens: int) -> tuple[float, list[Sample]]:
        answer = self._ask({"prompts": list(prompts), "concurrency": concurrency, "max_tokens": max_tokens})
        return answer["wall_s"], [Sample(*values) for values in answer["samples"]]

    def prefill(self, num_prompt_tokens: int, repeats: int) -> list[float]:
        seconds: list[float] = self._ask({"num_prompt_tokens": num_prompt_tokens, "repeats": repeats})["seconds"]
        return seconds

    def answer(self) -> Any:
        line = self.program.output.readline()
        if not line:
            self.program.process.wait()
            self.program.check()
        return json.loads(line)

    def _ask(self, command: dict[str, Any]) -> Any:
        self.program.input.write(json.dumps(command).encode() + b"\n")
        self.program.input.flush()
        return self.answer()


@contextmanager
def worker(command: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> Iterator[Worker]:
    """The process, from its first token until the block ends."""
    started = time.perf_counter()
    with running(command, env=env, pipes=True) as program:
        near_end = Worker(program)
        near_end.answer()
        near_end.first_token_s = time.perf_counter() - started
        yield near_end
