"""The engine's part of a trace."""

from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler

from deployments.otel_spans import OtelSpans
from deployments.spans import record_engine
from deployments.types import Timing

TIMING = Timing(queue_s=0.5, first_token_s=1.0, last_token_s=4.0)


class RecordingSpans:
    def __init__(self) -> None:
        self.recorded: list[tuple[str, float, float, dict[str, int]]] = []

    def record(self, name: str, began_at: float, ended_at: float, **attributes: int) -> None:
        self.recorded.append((name, began_at, ended_at, attributes))


def test_a_request_was_queued_prefilled_and_decoded() -> None:
    spans = RecordingSpans()
    record_engine(spans, 100.0, TIMING, num_tokens=7, num_cached=16)
    assert spans.recorded == [
        ("engine queue", 100.0, 100.5, {}),
        ("engine prefill", 100.5, 101.0, {"cached_tokens": 16}),
        ("engine decode", 101.0, 104.0, {"tokens": 7}),
    ]


def test_a_request_without_a_token_has_no_part() -> None:
    spans = RecordingSpans()
    record_engine(spans, 100.0, None, num_tokens=0, num_cached=0)
    assert spans.recorded == []


def exported(sampler: Sampler) -> Sequence[ReadableSpan]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=sampler)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    spans = OtelSpans(tracer)
    spans.record("of no request", 1.0, 2.0)
    with tracer.start_as_current_span("request"):
        spans.record("engine decode", 1000.25, 1000.5, tokens=7)
    return exporter.get_finished_spans()


def test_parts_belong_to_the_span_of_the_request() -> None:
    part, request = exported(ALWAYS_ON)
    assert (part.name, dict(part.attributes or {})) == ("engine decode", {"tokens": 7})
    assert (part.start_time, part.end_time) == (1_000_250_000_000, 1_000_500_000_000)
    assert part.parent is not None
    assert request.context is not None
    assert part.parent.span_id == request.context.span_id


def test_what_is_not_sampled_is_not_recorded() -> None:
    assert exported(ALWAYS_OFF) == ()
    assert not trace.get_current_span().is_recording()
