"""What the nodes of the graph promise to their callers, whatever runs them (Ray Serve or this process)."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Protocol

from deployments.training import TrainingEvent, TrainingRequest
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

    async def count(self, model: str, texts: tuple[str, ...]) -> tuple[int, ...]:
        """How many tokens each text has, without special tokens. Raises InvalidParameter, naming `texts[index]`, and
        ModelNotFound."""


class Generator(Protocol):
    """One base model. Cancelling `generate` or closing the iterator of `stream` frees what the request holds."""

    async def generate(self, request: GenerateRequest) -> GenerateResult:
        """The whole answer in one message. Raises InvalidParameter, ContextLengthExceeded, Overloaded, EngineError."""

    def stream(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        """The answer in pieces, the first as soon as there is one. Raises what `generate` raises."""

    async def check_health(self) -> None:
        """Returns when the model is loaded and can answer. Raises EngineDead."""


class FineTuner(Protocol):
    """Trains adapters, each on a worker of its own."""

    def train(self, request: TrainingRequest) -> AsyncGenerator[TrainingEvent, None]:
        """What happens while the adapter is trained, the last event a `Finished`. Closing the iterator ends the worker.

        A worker that lives says so at least every `training.BEAT_S` seconds, by an event or `Alive`.
        Raises InvalidTrainingData and TrainingFailed, which would come again; WorkerLost, Overloaded, ObjectStoreError,
        after which another call may go on from the last checkpoint.
        """


@dataclass(frozen=True, slots=True)
class Graph:
    """The nodes that a caller needs: the tokenizer, and one generator for each configured model id."""

    tokenizer: Tokenizer
    generators: Mapping[str, Generator]
