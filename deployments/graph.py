"""What the nodes of the graph promise to their callers, whatever runs them (Ray Serve or this process)."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Protocol

from deployments.types import (
    EncodeRequest,
    EncodeResult,
    GenerateChunk,
    GenerateRequest,
    GenerateResult,
)


class Tokenizer(Protocol):
    """Text to token ids and back, for every configured model."""

    async def encode(self, request: EncodeRequest) -> EncodeResult:
        """Raises InvalidParameter (an id outside the vocabulary, messages the template refuses) and ModelNotFound."""

    async def decode(self, model: str, token_ids: tuple[int, ...], *, skip_special_tokens: bool = False) -> str:
        """The text of the ids. Raises InvalidParameter and ModelNotFound."""

    async def token_texts(self, model: str, token_ids: tuple[int, ...]) -> tuple[str, ...]:
        """The text of each id on its own. Raises InvalidParameter and ModelNotFound."""


class Generator(Protocol):
    """One base model. Cancelling `generate` or closing the iterator of `stream` frees what the request holds."""

    async def generate(self, request: GenerateRequest) -> GenerateResult:
        """The whole answer in one message. Raises InvalidParameter, ContextLengthExceeded, Overloaded, EngineError."""

    def stream(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        """The answer in pieces, the first as soon as there is one. Raises what `generate` raises."""

    async def check_health(self) -> None:
        """Returns when the model is loaded and can answer. Raises EngineDead."""


@dataclass(frozen=True, slots=True)
class Graph:
    """The nodes that a caller needs: the tokenizer, and one generator for each configured model id."""

    tokenizer: Tokenizer
    generators: Mapping[str, Generator]
