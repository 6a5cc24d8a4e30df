"""What is measured of a generator: its requests, its engine's work and state, its start. Knows no Ray."""

from collections.abc import Mapping

from deployments.engine.protocol import EngineStats, EngineTotals
from deployments.meter import SHORT_LATENCIES_S, Counter, Gauge, Histogram, Meter
from deployments.types import GenerateRequest, Timing

_OF_REQUEST = ("model", "adapter")
_OF_MODEL = ("model",)

QUEUE = Histogram(
    "tritext_engine_queue_seconds",
    "From the arrival of a request at the engine until it began to be computed",
    _OF_REQUEST,
)
FIRST_TOKEN = Histogram(
    "tritext_engine_first_token_seconds", "From the arrival of a request at the engine to its first token", _OF_REQUEST
)
TOKEN = Histogram(
    "tritext_engine_token_seconds",
    "Time of each token of a sequence after its first, the mean of a request",
    _OF_REQUEST,
    SHORT_LATENCIES_S,
)

RUNNING = Gauge("tritext_engine_running_sequences", "Sequences that are being computed", _OF_MODEL)
WAITING = Gauge("tritext_engine_waiting_sequences", "Sequences that wait to be computed", _OF_MODEL)
PENDING_TOKENS = Gauge("tritext_engine_pending_tokens", "Prompt tokens that wait to be computed", _OF_MODEL)
CACHE_USE = Gauge("tritext_engine_cache_use_ratio", "Part of the KV cache that sequences hold, 0 to 1", _OF_MODEL)
ADAPTERS = Gauge("tritext_engine_adapters", "Adapters that are loaded", _OF_MODEL)
ADAPTER_BYTES = Gauge("tritext_engine_adapter_bytes", "Memory of the adapters that are loaded", _OF_MODEL)
START = Gauge("tritext_generator_start_seconds", "What the start of a replica took, by phase", ("model", "phase"))

STEPS = Counter("tritext_engine_steps_total", "Steps of the engine", _OF_MODEL)
STEP_SECONDS = Counter("tritext_engine_step_seconds_total", "Time in steps of the engine", _OF_MODEL)
STEP_SEQUENCES = Counter(
    "tritext_engine_step_sequences_total",
    "Sequences of each step, summed; divided by the steps, the size of a batch",
    _OF_MODEL,
)
STEP_TOKENS = Counter("tritext_engine_step_tokens_total", "Tokens of prompts and answers that were computed", _OF_MODEL)
PROMPT_TOKENS = Counter("tritext_engine_prompt_tokens_total", "Prompt tokens of sequences that began", _OF_MODEL)
CACHED_TOKENS = Counter(
    "tritext_engine_cached_tokens_total", "Prompt tokens that were found in the prefix cache", _OF_MODEL
)
PREEMPTIONS = Counter(
    "tritext_engine_preemptions_total", "Sequences that gave their cache back to be computed again", _OF_MODEL
)
ADAPTER_LOADS = Counter("tritext_engine_adapter_loads_total", "Adapters loaded into the engine", _OF_MODEL)
ADAPTER_LOAD_SECONDS = Counter(
    "tritext_engine_adapter_load_seconds_total", "Time in loading adapters into the engine", _OF_MODEL
)

METRICS = (
    *(QUEUE, FIRST_TOKEN, TOKEN, RUNNING, WAITING, PENDING_TOKENS, CACHE_USE, ADAPTERS, ADAPTER_BYTES, START),
    *(STEPS, STEP_SECONDS, STEP_SEQUENCES, STEP_TOKENS, PROMPT_TOKENS, CACHED_TOKENS, PREEMPTIONS),
    *(ADAPTER_LOADS, ADAPTER_LOAD_SECONDS),
)


def measure_request(meter: Meter, request: GenerateRequest, timing: Timing | None, num_tokens: int) -> None:
    """A request that has ended; timing: None where it brought no token. num_tokens: new ones, of all its sequences."""
    if timing is None:
        return
    labels = {"model": request.model, "adapter": "no" if request.adapter is None else "yes"}
    meter.observe(QUEUE, timing.queue_s, **labels)
    meter.observe(FIRST_TOKEN, timing.first_token_s, **labels)
    num_later = num_tokens / max(request.num_sequences - len(request.complete), 1) - 1
    if num_later > 0:
        meter.observe(TOKEN, (timing.last_token_s - timing.first_token_s) / num_later, **labels)


class EngineReport:
    """Turns snapshots of one engine into measurements. phases: what its start took, in seconds."""

    def __init__(self, meter: Meter, model: str, phases: Mapping[str, float]) -> None:
        self._meter = meter
        self._model = model
        self._phases = dict(phases)
        self._reported = EngineTotals()

    def report(self, stats: EngineStats) -> None:
        """To be called every second or so: how things stand, and what was done since the last time."""
        gauges = {
            RUNNING: stats.num_running,
            WAITING: stats.num_waiting,
            PENDING_TOKENS: stats.num_pending_tokens,
            CACHE_USE: 1 - stats.num_free_blocks / max(stats.num_blocks, 1),
            ADAPTERS: stats.num_adapters,
            ADAPTER_BYTES: stats.adapter_bytes,
        }
        for gauge, value in gauges.items():
            self._meter.set(gauge, value, model=self._model)
        for phase, seconds in self._phases.items():
            self._meter.set(START, seconds, model=self._model, phase=phase)
        now, before = stats.totals, self._reported
        counters = {
            STEPS: now.steps - before.steps,
            STEP_SECONDS: now.step_s - before.step_s,
            STEP_SEQUENCES: now.step_sequences - before.step_sequences,
            STEP_TOKENS: now.step_tokens - before.step_tokens,
            PROMPT_TOKENS: now.prompt_tokens - before.prompt_tokens,
            CACHED_TOKENS: now.cached_tokens - before.cached_tokens,
            PREEMPTIONS: now.preemptions - before.preemptions,
            ADAPTER_LOADS: now.adapter_loads - before.adapter_loads,
            ADAPTER_LOAD_SECONDS: now.adapter_load_s - before.adapter_load_s,
        }
        for counter, amount in counters.items():
            self._meter.add(counter, amount, model=self._model)
        self._reported = now
