"""What is measured of the requests that ask a model for text. Knows no HTTP and no Ray."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from deployments.errors import OutOfCredits, Overloaded, RateLimited, ServiceError
from deployments.meter import SHORT_LATENCIES_S, Counter, Histogram, Meter
from deployments.types import GenerateChunk, GenerateRequest, GenerateResult, Timing
from serve_app.ledger.entries import Counts
from serve_app.use_cases.callers import Caller

_LABELS = ("dialect", "model", "adapter")

REQUESTS = Counter(
    "tritext_requests_total",
    "Requests that named a model and fitted it, by how they ended: completed, cancelled (the client went away or the "
    "time was up), refused (limits, credit), invalid, overloaded, failed",
    (*_LABELS, "outcome"),
)
DURATION = Histogram(
    "tritext_request_seconds",
    "From the arrival of a completed request to the end of its answer; of a stream, as fast as the client read it",
    (*_LABELS, "stream"),
)
FIRST_TOKEN = Histogram(
    "tritext_first_token_seconds", "From the arrival of a request to the first piece of its stream", _LABELS
)
TOKEN = Histogram(
    "tritext_token_seconds",
    "Time of each token of a streamed sequence after its first piece, the mean of a request",
    _LABELS,
    SHORT_LATENCIES_S,
)
FRAMEWORK = Histogram(
    "tritext_framework_seconds",
    "What a request took beside its engine, queue included there: of a stream until its first piece, else in all",
    _LABELS,
    SHORT_LATENCIES_S,
)
TOKENS = Counter("tritext_tokens_total", "Tokens that are charged: of prompts, of completions", (*_LABELS, "kind"))

METRICS = (REQUESTS, DURATION, FIRST_TOKEN, TOKEN, FRAMEWORK, TOKENS)


class RequestMeasurement:
    """One request, from its arrival, which its caller carries in seconds of `clock`; `requests` has one item for each
    of its prompts."""

    def __init__(
        self,
        meter: Meter,
        caller: Caller,
        requests: Sequence[GenerateRequest],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._meter = meter
        self._clock = clock
        self._arrived_at = caller.received_at
        self._labels = {
            "dialect": caller.dialect.value,
            "model": requests[0].model,
            "adapter": "no" if requests[0].adapter is None else "yes",
        }
        self._num_sequences = sum(request.num_sequences for request in requests)
        self._is_stream = False
        self._first_at: float | None = None
        self._last_at = 0.0
        self._num_first_tokens = 0
        self._num_tokens = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """The outcome is that of the context."""
        outcome = "cancelled"
        try:
            yield
            outcome = "completed"
        except Exception as error:
            outcome = outcome_of(error)
            raise
        finally:
            self._meter.add(REQUESTS, 1, outcome=outcome, **self._labels)
            if outcome == "completed":
                stream = "yes" if self._is_stream else "no"
                self._meter.observe(DURATION, self._clock() - self._arrived_at, stream=stream, **self._labels)
            self._observe_tokens()

    def whole(self, results: Iterable[GenerateResult]) -> None:
        """The answers to all its prompts, not streamed."""
        self._observe_framework([result.timing for result in results], lambda timing: timing.last_token_s)

    def piece(self, chunk: GenerateChunk) -> None:
        """A piece of its stream, about to be sent."""
        self._last_at = self._clock()
        self._num_tokens += len(chunk.token_ids)
        if self._first_at is None:
            self._is_stream = True
            self._first_at = self._last_at
            self._num_first_tokens = len(chunk.token_ids)
            self._meter.observe(FIRST_TOKEN, self._first_at - self._arrived_at, **self._labels)
            self._observe_framework([chunk.timing], lambda timing: timing.first_token_s)

    def charged(self, counts: Counts) -> None:
        self._meter.add(TOKENS, counts.prompt_tokens, kind="prompt", **self._labels)
        self._meter.add(TOKENS, counts.completion_tokens, kind="completion", **self._labels)

    def _observe_framework(self, timings: Iterable[Timing | None], engine_s: Callable[[Timing], float]) -> None:
        engines_s = [engine_s(timing) for timing in timings if timing is not None]
        if engines_s:
            # Prompts of one request are computed beside each other; it waits for the slowest.
            elapsed_s = self._clock() - self._arrived_at
            self._meter.observe(FRAMEWORK, max(elapsed_s - max(engines_s), 0.0), **self._labels)

    def _observe_tokens(self) -> None:
        num_later = self._num_tokens - self._num_first_tokens
        if self._first_at is not None and num_later > 0:
            seconds = (self._last_at - self._first_at) * self._num_sequences / num_later
            self._meter.observe(TOKEN, seconds, **self._labels)


def outcome_of(error: Exception) -> str:
    """One of few words for why a request has no answer."""
    if isinstance(error, RateLimited | OutOfCredits):
        return "refused"
    if isinstance(error, Overloaded):
        return "overloaded"
    if isinstance(error, ServiceError) and error.status < 500:
        return "invalid"
    return "failed"
