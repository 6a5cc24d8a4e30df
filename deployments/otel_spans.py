"""Traces of OpenTelemetry, which comes with Ray; Ray Serve makes the spans around these where tracing is on."""

from opentelemetry import trace

_NANOSECONDS = 1_000_000_000


class OtelSpans:
    """Implements `deployments.spans.Spans` under the current span, if that is recorded."""

    def __init__(self, tracer: trace.Tracer | None = None) -> None:
        """tracer: None takes the process's own, also where it is set up later."""
        self._tracer = tracer or trace.get_tracer("tritext")

    def record(self, name: str, began_at: float, ended_at: float, **attributes: int) -> None:
        if not trace.get_current_span().is_recording():
            return
        span = self._tracer.start_span(name, start_time=int(began_at * _NANOSECONDS), attributes=attributes)
        span.end(int(ended_at * _NANOSECONDS))
