"""The generator node: one base model, from prompt token ids to text. A plain class; knows no Ray and no dialect."""

import asyncio
import functools
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from deployments.adapters.cache import AdapterCache
from deployments.adapters.files import AdapterFiles
from deployments.checkpoints.opening import open_artifacts
from deployments.config import AdapterCacheConfig, CheckpointConfig, ModelConfig
from deployments.engine.protocol import Engine, EngineStats, Generation, RawLogprobs, TokenDelta
from deployments.engine.sequence_text import SequenceText
from deployments.errors import EngineDead
from deployments.generator_metrics import measure_request
from deployments.meter import Meter, NoMeter
from deployments.model_files import ModelFiles, read_model_files
from deployments.model_source import default_home, resolve
from deployments.model_tokenizer import load_tokenizer
from deployments.spans import NoSpans, Spans, record_engine
from deployments.start_phases import StartPhases
from deployments.token_bytes import TokenBytes
from deployments.types import (
    FinishReason,
    GenerateChunk,
    GenerateRequest,
    GenerateResult,
    PositionLogprobs,
    SamplingParams,
    SequenceOutput,
    Timing,
    TokenLogprob,
    Usage,
)

logger = logging.getLogger(__name__)

MakeEngine = Callable[[ModelConfig, ModelFiles, Path, StartPhases], Engine]


class GeneratorNode:
    """Implements `deployments.graph.Generator`. To be started before use."""

    def __init__(
        self,
        model: ModelConfig,
        home: Path | None = None,
        *,
        adapters: AdapterCacheConfig | None = None,
        checkpoints: CheckpointConfig | None = None,
        make_engine: MakeEngine | None = None,
        meter: Meter | None = None,
        spans: Spans | None = None,
    ) -> None:
        """`checkpoints` says where adapters come from; they are asked for when the first request needs one."""
        self._model = model
        self._home = home or default_home()
        self._adapter_config = adapters or AdapterCacheConfig()
        self._checkpoints = checkpoints or CheckpointConfig()
        self._make_engine = make_engine or make_torch_engine
        self._meter = meter or NoMeter()
        self._spans = spans or NoSpans()
        self.phases = StartPhases()
        self._engine: Engine | None = None
        self._adapters: AdapterCache | None = None
        self._token_bytes: TokenBytes | None = None

    async def start(self) -> None:
        """Loads the model; `phases` tell afterwards what took how long. Raises ModelSourceError, or what the engine
        raises, when it cannot be loaded."""
        with self.phases.within("source"):
            directory = await asyncio.to_thread(resolve, self._model.source, self._home)
        with self.phases.within("tokenizer"):
            model_files = read_model_files(directory)
            self._token_bytes = TokenBytes(await asyncio.to_thread(load_tokenizer, directory))
        engine = self._make_engine(self._model, model_files, self._home, self.phases)
        await engine.start()
        self._engine = engine
        files = AdapterFiles(
            self._home / "adapters",
            lambda: open_artifacts(self._checkpoints, self._home),
            max_bytes=self._adapter_config.disk_bytes,
        )
        self._adapters = AdapterCache(engine, files.read, self._adapter_config)
        phases = ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in self.phases.seconds.items())
        logger.info("the model %s is loaded: %s", self._model.id, phases)

    async def stop(self) -> None:
        """Ends all requests with EngineDead."""
        if self._adapters is not None:
            await self._adapters.stop()
        if self._engine is not None:
            await self._engine.stop()

    async def check_health(self) -> None:
        await self._started()[0].check_health()

    def stats(self) -> EngineStats:
        return self._started()[0].stats()

    async def generate(self, request: GenerateRequest) -> GenerateResult:
        parts = [_SequenceParts() for _ in range(request.num_sequences)]
        prompt_logprobs: tuple[PositionLogprobs | None, ...] | None = None
        usage = Usage(len(request.prompt_token_ids), 0)
        timing: Timing | None = None
        async with aclosing(self._chunks(request, wants_pieces=_may_end_by_text(request.sampling))) as chunks:
            async for chunk in chunks:
                parts[chunk.index].add(chunk)
                prompt_logprobs = chunk.prompt_logprobs or prompt_logprobs
                usage = chunk.usage or usage
                timing = chunk.timing or timing
        sequences = tuple(part.output(index) for index, part in enumerate(parts))
        return GenerateResult(sequences, prompt_logprobs, usage, timing)

    def stream(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        return self._chunks(request, wants_pieces=True)

    async def _chunks(self, request: GenerateRequest, *, wants_pieces: bool) -> AsyncGenerator[GenerateChunk, None]:
        engine, token_bytes = self._started()
        answer = _Answer(request, token_bytes)
        async with self._adapter_of(request):
            submitted_at = time.time()
            generation = engine.submit(request, wants_pieces=wants_pieces)
            is_first = True
            try:
                async for deltas in generation:
                    for chunk in answer.chunks(deltas, generation):
                        is_timed = is_first or chunk.usage is not None
                        yield replace(chunk, timing=generation.timing) if is_timed else chunk
                        is_first = False
            finally:
                generation.close()
                timing, num_tokens = generation.timing, answer.num_new_tokens
                measure_request(self._meter, request, timing, num_tokens)
                record_engine(
                    self._spans, submitted_at, timing, num_tokens=num_tokens, num_cached=answer.num_cached_tokens
                )

    def _adapter_of(self, request: GenerateRequest) -> AbstractAsyncContextManager[None]:
        """Within it, the engine has the adapter that the request needs, if it needs one."""
        if request.adapter is None or self._adapters is None:
            return nullcontext()
        return self._adapters.using(request.adapter)

    def _started(self) -> tuple[Engine, TokenBytes]:
        if self._engine is None or self._token_bytes is None:
            raise EngineDead("the generator is not started")
        return self._engine, self._token_bytes


def make_torch_engine(model: ModelConfig, files: ModelFiles, home: Path, phases: StartPhases) -> Engine:
    """The default engine for a model directory; what it prepares for this machine is kept under `home`."""
    # Imported here: whoever composes the graph without running a model does not load torch.
    with phases.within("imports"):
        from deployments.engine.model_runner import load_runner
        from deployments.engine.torch_engine import TorchEngine

    return TorchEngine(
        files.directory,
        model.engine,
        context_length=min(model.context_length or files.context_length, files.context_length),
        eos_token_ids=frozenset(files.eos_token_ids),
        load=functools.partial(load_runner, home=home, phases=phases),
    )


def _may_end_by_text(sampling: SamplingParams) -> bool:
    """Whether its tokens must be looked at while they come, because the engine does not know where the text ends."""
    return bool(sampling.stop) or sampling.max_characters is not None


class _Answer:
    """The text and the counts of a request's sequences, as their tokens arrive."""

    def __init__(self, request: GenerateRequest, token_bytes: TokenBytes) -> None:
        self._sampling = request.sampling
        self._token_bytes = token_bytes
        self._texts = [
            SequenceText(token_bytes, request.prompt_token_ids, request.sampling) for _ in range(request.num_sequences)
        ]
        self._open = set(range(request.num_sequences)) - request.complete
        self._num_given = sum(len(token_ids) for token_ids in request.generated)
        self._usage = Usage(len(request.prompt_token_ids), self._num_given)
        for index, token_ids in enumerate(request.generated):
            if index in self._open:
                self._texts[index].append(token_ids)

    @property
    def num_new_tokens(self) -> int:
        """Those that this answer brought so far; a resumed request was given others."""
        return self._usage.completion_tokens - self._num_given

    @property
    def num_cached_tokens(self) -> int:
        return self._usage.cached_tokens

    def chunks(self, deltas: Sequence[TokenDelta], generation: Generation) -> list[GenerateChunk]:
        """One chunk for each sequence that has something new; ends those in `generation` whose text is complete."""
        merged: dict[int, list[TokenDelta]] = {}
        for delta in deltas:
            merged.setdefault(delta.index, []).append(delta)
        return [self._chunk(index, parts, generation) for index, parts in merged.items()]

    def _chunk(self, index: int, deltas: Sequence[TokenDelta], generation: Generation) -> GenerateChunk:
        last = deltas[-1]
        token_ids = [token_id for delta in deltas for token_id in delta.token_ids]
        piece = self._texts[index].append(token_ids[:-1] if self._is_hidden(last) else token_ids)
        text, finish_reason = piece.text, piece.finish_reason
        stop_reason: str | int | None = piece.stop_reason
        if finish_reason is not None:
            token_ids = token_ids[: piece.num_tokens]
            generation.stop_sequence(index)
        elif last.finish_reason is not None:
            finish_reason, stop_reason = last.finish_reason, last.stop_token_id
            text += self._texts[index].finish()
        if finish_reason is not None:
            self._open.discard(index)
        self._usage = replace(
            self._usage,
            completion_tokens=self._usage.completion_tokens + len(token_ids),
            cached_tokens=last.num_cached_tokens if index == 0 else self._usage.cached_tokens,
        )
        return GenerateChunk(
            index=index,
            token_ids=tuple(token_ids),
            text=text,
            logprobs=self._logprobs(deltas, len(token_ids)),
            prompt_logprobs=self._prompt_logprobs(deltas),
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            usage=None if self._open else self._usage,
        )

    def _is_hidden(self, delta: TokenDelta) -> bool:
        """Whether its last token ends the sequence and has no text of its own: the end-of-text or a special token."""
        if delta.finish_reason is not FinishReason.STOP or self._sampling.include_stop_str_in_output:
            return False
        return delta.stop_token_id is None or self._token_bytes.is_special(delta.stop_token_id)

    def _logprobs(self, deltas: Sequence[TokenDelta], num_tokens: int) -> tuple[PositionLogprobs, ...] | None:
        if self._sampling.logprobs is None:
            return None
        raw = [position for delta in deltas for position in delta.logprobs or ()]
        return tuple(self._position(position) for position in raw[:num_tokens])

    def _prompt_logprobs(self, deltas: Sequence[TokenDelta]) -> tuple[PositionLogprobs | None, ...] | None:
        for delta in deltas:
            if delta.prompt_logprobs is not None:
                return tuple(None if raw is None else self._position(raw) for raw in delta.prompt_logprobs)
        return None

    def _position(self, raw: RawLogprobs) -> PositionLogprobs:
        top = zip(raw.top_token_ids, raw.top_logprobs, strict=True)
        return PositionLogprobs(
            chosen=self._token(raw.token_id, raw.logprob),
            top=tuple(self._token(token_id, logprob) for token_id, logprob in top),
        )

    def _token(self, token_id: int, logprob: float) -> TokenLogprob:
        return TokenLogprob(token_id, logprob, self._token_bytes.text(token_id))


@dataclass(slots=True)
class _SequenceParts:
    """The chunks of one sequence, put together."""

    token_ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    logprobs: list[PositionLogprobs] | None = None
    finish_reason: FinishReason = FinishReason.LENGTH
    stop_reason: str | int | None = None

    def add(self, chunk: GenerateChunk) -> None:
        self.token_ids += chunk.token_ids
        self.texts.append(chunk.text)
        if chunk.logprobs is not None:
            self.logprobs = (self.logprobs or []) + list(chunk.logprobs)
        if chunk.finish_reason is not None:
            self.finish_reason, self.stop_reason = chunk.finish_reason, chunk.stop_reason

    def output(self, index: int) -> SequenceOutput:
        return SequenceOutput(
            index=index,
            token_ids=tuple(self.token_ids),
            text="".join(self.texts),
            logprobs=None if self.logprobs is None else tuple(self.logprobs),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )
