"""The default engine: continuous batching on torch, stepping in a thread of its own.

The event loop hands requests in and takes tokens out; sequences, cache blocks and tensors belong to the step thread
alone, so that none of them needs a lock.
"""

import asyncio
import dataclasses
import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from deployments.config import EngineConfig
from deployments.engine.core import EngineCore, StepResult
from deployments.engine.delivery import Delivery
from deployments.engine.generation import QueuedGeneration
from deployments.engine.loaded_adapters import LoadedAdapters
from deployments.engine.model_runner import ModelRunner
from deployments.engine.protocol import EngineStats, Generation, LoadedAdapter
from deployments.engine.sampler import Sampler
from deployments.engine.sequence import PreparedAdapter
from deployments.engine.sequence import Sequence as TokenSequence
from deployments.errors import ContextLengthExceeded, EngineDead, EngineStuck, InvalidParameter, Overloaded
from deployments.types import AdapterRef, GenerateRequest, SamplingParams

logger = logging.getLogger(__name__)


class TorchEngine:
    """Implements `Engine` for a model directory in Hugging Face layout, on the runner that `load` makes of it."""

    def __init__(
        self,
        path: Path,
        config: EngineConfig,
        *,
        context_length: int,
        eos_token_ids: frozenset[int],
        load: Callable[[Path, EngineConfig], ModelRunner],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._config = config
        self._context_length = context_length
        self._eos_token_ids = eos_token_ids
        self._load = load
        self._vocab_size = 0
        self._runner: ModelRunner | None = None
        self._adapters = LoadedAdapters()
        self._keys = itertools.count()
        self._generations: dict[int, QueuedGeneration] = {}
        self._delivery = Delivery(config.stream_interval_s, clock)
        self._clock = clock
        self._step_s = 0.0
        self._step_began_at: float | None = None  # None: none is computed
        self._adapter_loads = 0
        self._adapter_load_s = 0.0
        self._stats = EngineStats(0, 0, 0, 0)
        # Guards everything below.
        self._changed = threading.Condition()
        self._commands: list[Callable[[EngineCore], None]] = []
        self._num_submitted = 0
        self._stopping = False
        self._dead: str | None = "the engine is not started"
        self._thread: threading.Thread | None = None

    async def start(self) -> None:
        core = await asyncio.to_thread(self._prepare)
        self._dead = None
        self._thread = threading.Thread(target=self._run, args=(core,), name="engine-step", daemon=True)
        self._thread.start()

    def _prepare(self) -> EngineCore:
        runner = self._load(self._path, self._config)
        capacity = runner.num_blocks * self._config.block_size
        if capacity < self._context_length:
            raise ValueError(
                f"kv_cache_bytes {self._config.kv_cache_bytes} holds {capacity} tokens, less than the model's context "
                f"of {self._context_length}: raise kv_cache_bytes, or set context_length"
            )
        self._vocab_size = runner.vocab_size
        self._runner = runner
        core = EngineCore(
            runner, Sampler(runner.vocab_size, self._eos_token_ids, runner.device, draw=runner.draw), self._config
        )
        self._stats = core.stats()
        return core

    def submit(self, request: GenerateRequest, *, wants_pieces: bool = True) -> Generation:
        check_token_ids(request, self._vocab_size)
        self._refuse_what_cannot_fit(request)
        group = next(self._keys)
        adapter = None if request.adapter is None else self._adapters.get(request.adapter)
        sequences = [
            self._sequence(request, group, index, adapter)
            for index in range(request.num_sequences)
            if index not in request.complete
        ]
        generation = QueuedGeneration(
            [sequence.index for sequence in sequences],
            wants_pieces=wants_pieces,
            submitted_at=self._clock(),
            stop=lambda indexes: self._command(lambda core: core.remove(group, indexes)),
            forget=lambda: self._forget(group),
        )
        with self._changed:
            if self._dead is not None:
                raise EngineDead(self._dead)
            self._refuse_beyond_queue()
            self._generations[group] = generation
            self._num_submitted += len(sequences)
        self._command(lambda core: self._add(core, group, sequences))
        return generation

    def stats(self) -> EngineStats:
        num_adapters, adapter_bytes = self._adapters.totals()
        stats = self._stats
        totals = dataclasses.replace(
            stats.totals,
            step_s=self._step_s,
            adapter_loads=self._adapter_loads,
            adapter_load_s=self._adapter_load_s,
        )
        return dataclasses.replace(stats, num_adapters=num_adapters, adapter_bytes=adapter_bytes, totals=totals)

    @property
    def is_on_host(self) -> bool:
        return self._living_runner().device.type == "cpu"

    def adapter_bytes(self, adapter: LoadedAdapter) -> int:
        return self._living_runner().adapter_bytes(adapter)

    async def load_adapter(self, adapter: LoadedAdapter) -> None:
        """Prepares it beside the step thread; the sequences of later requests carry it into their steps."""
        runner = self._living_runner()
        if adapter.ref not in self._adapters:
            began_at = self._clock()
            try:
                prepared = await asyncio.to_thread(runner.prepare_adapter, adapter)
            except Exception:
                # Perhaps of a broken device, which no step meets as long as no adapter gets onto it.
                self._command(EngineCore.check)
                raise
            self._adapters.add(prepared)
            self._adapter_loads += 1
            self._adapter_load_s += self._clock() - began_at

    async def unload_adapter(self, adapter: AdapterRef) -> None:
        unused = self._adapters.take(adapter)
        if unused is None:
            return
        try:
            self._command(lambda core: core.when_unused(unused.prepared, unused.settle))
            await unused.wait()
        finally:
            self._adapters.forget(unused)

    async def check_health(self) -> None:
        if self._dead is not None:
            raise EngineDead(self._dead)
        began_at = self._step_began_at
        if began_at is not None and self._clock() - began_at > self._config.step_timeout_s:
            raise EngineStuck(f"a step has not ended for more than {self._config.step_timeout_s:g} s")

    async def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def _living_runner(self) -> ModelRunner:
        runner = self._runner
        if self._dead is not None or runner is None:
            raise EngineDead(self._dead)
        return runner

    def _sequence(
        self, request: GenerateRequest, group: int, index: int, adapter: PreparedAdapter | None
    ) -> TokenSequence:
        return TokenSequence(
            key=next(self._keys),
            group=group,
            index=index,
            prompt_token_ids=tuple(request.prompt_token_ids),
            params=request.sampling,
            eos_token_ids=self._eos_token_ids,
            context_length=self._context_length,
            cache_salt=request.cache_salt,
            output_token_ids=list(request.generated[index]) if request.generated else [],
            wants_prompt_logprobs=index == 0 and request.sampling.prompt_logprobs is not None,
            adapter=adapter,
        )

    def _forget(self, group: int) -> None:
        self._generations.pop(group, None)

    def _refuse_what_cannot_fit(self, request: GenerateRequest) -> None:
        """Every sequence needs a token to continue from and room for one more; the cache holds one whole context."""
        if not request.prompt_token_ids:
            raise InvalidParameter("the prompt holds no token to continue from", "prompt")
        begun = [len(tokens) for index, tokens in enumerate(request.generated) if index not in request.complete]
        num_known = len(request.prompt_token_ids) + max(begun, default=0)
        if num_known >= self._context_length:
            raise ContextLengthExceeded(num_known, self._context_length)

    def _refuse_beyond_queue(self) -> None:
        num_waiting = self._stats.num_waiting + self._num_submitted
        if num_waiting >= self._config.max_queued_sequences:
            raise Overloaded(f"{num_waiting} sequences are waiting to be generated already; try again later")

    def _command(self, command: Callable[[EngineCore], None]) -> None:
        with self._changed:
            self._commands.append(command)
            self._changed.notify()

    def _add(self, core: EngineCore, group: int, sequences: Sequence[TokenSequence]) -> None:
        core.add(group, sequences)
        with self._changed:
            self._num_submitted -= len(sequences)
            self._stats = core.stats()

    def _run(self, core: EngineCore) -> None:
        """The step thread: does what it is asked, steps while there is work, and sleeps otherwise.

        It ends when the model can compute nothing any more. The requests whose step showed this have failed by then,
        for any of them may be the cause; the others learn that the engine is dead.
        """
        reason = "the engine was stopped"
        try:
            while self._obey(core):
                self._step_began_at = began_at = self._clock()
                result = core.step()
                ended_at = self._clock()
                self._step_s += ended_at - began_at
                self._stats = core.stats()
                self._note_times(result, began_at, ended_at)
                self._deliver(result)
                if result.has_raised:
                    core.check()
                self._step_began_at = None
        except BaseException as error:
            logger.exception("the step thread died")
            reason = f"the step thread died of {type(error).__name__}"
        finally:
            with self._changed:
                self._dead = reason
                generations = list(self._generations.values())
                self._runner = None
            for generation in generations:
                self._delivery.fail(generation, EngineDead(reason))
            self._delivery.send()
            self._adapters.close(EngineDead(reason))

    def _obey(self, core: EngineCore) -> bool:
        """Carries out all commands; waits while there is nothing to compute. False when the engine shall stop."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._commands or self._stopping or core.has_work)
                commands, self._commands = self._commands, []
                if self._stopping:
                    return False
            for command in commands:
                command(core)
            self._stats = core.stats()
            if core.has_work:
                return True

    def _note_times(self, result: StepResult, began_at: float, ended_at: float) -> None:
        for group in result.begun:
            if (generation := self._generations.get(group)) is not None:
                generation.note_begin(began_at)
        for group in result.deltas:
            if (generation := self._generations.get(group)) is not None:
                generation.note_tokens(ended_at)

    def _deliver(self, result: StepResult) -> None:
        for group, deltas in result.deltas.items():
            if (generation := self._generations.get(group)) is not None:
                self._delivery.add(generation, deltas)
        for group, error in result.failed.items():
            if (generation := self._generations.get(group)) is not None:
                self._delivery.fail(generation, error)
        self._delivery.send()


def check_token_ids(request: GenerateRequest, vocab_size: int) -> None:
    """Raises InvalidParameter, naming the field, when a token id of the request is outside the vocabulary."""
    sampling: SamplingParams = request.sampling
    fields = {
        "prompt": request.prompt_token_ids,
        "generated": [token_id for token_ids in request.generated for token_id in token_ids],
        "stop_token_ids": sampling.stop_token_ids,
        "logit_bias": [token_id for token_id, _ in sampling.logit_bias],
        "allowed_token_ids": sampling.allowed_token_ids or (),
    }
    for name, token_ids in fields.items():
        for token_id in token_ids:
            if not 0 <= token_id < vocab_size:
                raise InvalidParameter(f"token id {token_id} is not in the vocabulary of {vocab_size} tokens", name)
