"""What an engine promises to the generator node: token ids in, token ids and log-probabilities out, no text."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from deployments.types import AdapterRef, FinishReason, GenerateRequest, Timing

Array = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class RawLogprobs:
    """At one position: the raw log-probability of the token there, and the likeliest tokens, likeliest first."""

    token_id: int
    logprob: float
    top_token_ids: Sequence[int]
    top_logprobs: Sequence[float]


@dataclass(frozen=True, slots=True)
class TokenDelta:
    """New tokens of sequence `index`, with one entry of `logprobs` for each where asked for.

    `prompt_logprobs`, where asked for, comes once, with or before the first tokens of sequence 0: one entry for each
    prompt token, None for the first. `num_cached_tokens` is how much of the prompt was found in the cache.
    """

    index: int
    token_ids: tuple[int, ...]
    logprobs: tuple[RawLogprobs, ...] | None = None
    prompt_logprobs: tuple[RawLogprobs | None, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    num_cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class LowRankPair:
    """What an adapter adds to a linear's output for the input x: (x aᵀ) bᵀ.

    a [rank, in] and b [out, rank], float32, contiguous, finite; the adapter's scale is part of b.
    """

    a: Array
    b: Array

    @property
    def rank(self) -> int:
        return len(self.a)


@dataclass(frozen=True, slots=True, eq=False)
class LoadedAdapter:
    """A LoRA adapter, read and checked. `pairs`: by the linear's path within the model, `model.layers.0.mlp.up_proj`;
    linears that are not named stay as they are."""

    ref: AdapterRef
    pairs: Mapping[str, LowRankPair]

    @property
    def num_bytes(self) -> int:
        return sum(pair.a.nbytes + pair.b.nbytes for pair in self.pairs.values())


@dataclass(frozen=True, slots=True)
class EngineTotals:
    """What the engine has done since it started.

    step_sequences, step_tokens: summed over the steps, those that a step computed. prompt_tokens: of sequences that
    began; cached_tokens: those of them that were found in the cache. adapter_loads: that took something.
    """

    steps: int = 0
    step_s: float = 0.0
    step_sequences: int = 0
    step_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    adapter_loads: int = 0
    adapter_load_s: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What the engine holds at this moment. Of adapters, those that new requests can use. num_pending_tokens: of
    prompts, that wait to be computed."""

    num_running: int
    num_waiting: int
    num_free_blocks: int
    num_blocks: int
    num_pending_tokens: int = 0
    num_adapters: int = 0
    adapter_bytes: int = 0
    totals: EngineTotals = EngineTotals()


class Generation(Protocol):
    """A request being answered: iterate over it for what is new, each item holding everything since the last one.

    Iteration raises GenerationFailed and EngineDead.
    """

    def __aiter__(self) -> AsyncIterator[Sequence[TokenDelta]]: ...

    @property
    def timing(self) -> Timing | None:
        """None before its first token."""

    def stop_sequence(self, index: int) -> None:
        """Ends one sequence, because its text is complete; the others go on."""

    def close(self) -> None:
        """Ends all its sequences and frees what they hold, within one step of the engine. May be called twice."""


class Engine(Protocol):
    """A language model that continues many sequences at once."""

    async def start(self) -> None:
        """Loads the model. Raises what tells why it cannot."""

    def submit(self, request: GenerateRequest, *, wants_pieces: bool = True) -> Generation:
        """Queues the request. Without `wants_pieces` the tokens of a sequence come when it has ended.

        Raises InvalidParameter, ContextLengthExceeded, AdapterNotLoaded, Overloaded, EngineDead.
        """

    @property
    def is_on_host(self) -> bool:
        """Whether the device's memory is that of the host. Raises EngineDead."""

    def adapter_bytes(self, adapter: LoadedAdapter) -> int:
        """What it takes of the device once it is loaded. Raises InvalidAdapter where it does not fit the model,
        EngineDead."""

    async def load_adapter(self, adapter: LoadedAdapter) -> None:
        """Makes the adapter usable from the next step on, while others run. Loading a digest again changes nothing.

        Raises InvalidAdapter where it does not fit the model, EngineDead.
        """

    async def unload_adapter(self, adapter: AdapterRef) -> None:
        """Refuses new requests for the adapter from now on, and returns when the last that uses it has ended.

        Requests that run end undisturbed. What is not loaded is unloaded already. Loading the same digest meanwhile is
        a new load. Raises EngineDead when the engine dies while it waits.
        """

    def stats(self) -> EngineStats:
        """A snapshot."""

    async def check_health(self) -> None:
        """Raises EngineDead when the engine cannot answer any more, EngineStuck where it would not say so itself."""

    async def stop(self) -> None:
        """Ends all requests with EngineDead and frees the model."""
