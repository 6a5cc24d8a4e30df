"""The graph in this process, without Ray: the same node classes, for tests and small tools. Knows no HTTP."""

from pathlib import Path

from deployments.config import GraphConfig
from deployments.generator import GeneratorNode
from deployments.graph import Graph
from deployments.model_source import default_home
from deployments.tokenizer import TokenizerNode


class LocalGraph:
    """Loads every configured model in this process; use it as an async context manager, or `start` and `stop` it.

    `graph` is what callers are given; it may be called between `start` and `stop`.
    """

    def __init__(self, config: GraphConfig, *, home: Path | None = None) -> None:
        """`home` is where packaged models are prepared; None takes `model_source.default_home()`."""
        self._config = config
        self._home = home or default_home()
        self._generators: dict[str, GeneratorNode] = {}

    async def start(self) -> Graph:
        """Raises ModelSourceError, or what the engine raises, where a model cannot be loaded; nothing runs then."""
        tokenizer = TokenizerNode(self._config, self._home)
        try:
            await tokenizer.start()
            for model in self._config.models:
                generator = self._generators[model.id] = GeneratorNode(
                    model, self._home, adapters=self._config.adapters, checkpoints=self._config.checkpoints
                )
                await generator.start()
        except BaseException:
            await self.stop()
            raise
        return Graph(tokenizer=tokenizer, generators=dict(self._generators))

    async def stop(self) -> None:
        while self._generators:
            _, generator = self._generators.popitem()
            await generator.stop()

    async def __aenter__(self) -> Graph:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
