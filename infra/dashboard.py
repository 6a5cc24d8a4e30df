"""The Grafana dashboard, as the rows of graphs that it has; `python -m infra.generate` writes it as Grafana reads it.

`$model` is the reader's choice of models. Gauges of what waits are the same in every dispatcher: the greatest counts.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH, _HEIGHT = 8, 8
_OF_MODELS = 'model=~"$model"'


@dataclass(frozen=True, slots=True)
class Graph:
    """One panel. lines: a name for each, with the query that draws it. unit: in Grafana's words."""

    title: str
    unit: str
    lines: Sequence[tuple[str, str]]
    description: str = ""
    is_stacked: bool = False


def _rate(name: str, *labels: str) -> str:
    return f"rate(ray_{name}{{{', '.join((_OF_MODELS, *labels))}}}[$__rate_interval])"


def _quantiles(name: str, *labels: str, by: str = "") -> tuple[tuple[str, str], ...]:
    """The median and the 95th percentile of a histogram."""
    groups = f"{by}, le" if by else "le"
    prefix = f"{{{{{by}}}}} " if by else ""
    rate = _rate(f"{name}_bucket", *labels)
    return tuple(
        (f"{prefix}{words}", f"histogram_quantile({quantile}, sum by ({groups}) ({rate}))")
        for words, quantile in (("median", 0.5), ("95 %", 0.95))
    )


def _sum(name: str, by: str, *labels: str) -> tuple[str, str]:
    return f"{{{{{by}}}}}", f"sum by ({by}) ({_rate(name, *labels)})"


def _gauge(name: str, how: str = "sum") -> tuple[str, str]:
    return "{{model}}", f"{how} by (model) (ray_{name}{{{_OF_MODELS}}})"


ROWS: Sequence[tuple[str, Sequence[Graph]]] = (
    (
        "Requests",
        (
            Graph("Requests by how they ended", "reqps", [_sum("tritext_requests_total", "outcome")], is_stacked=True),
            Graph("Requests by API", "reqps", [_sum("tritext_requests_total", "dialect")], is_stacked=True),
            Graph(
                "Not let in",
                "reqps",
                [
                    (
                        "{{dialect}}: {{reason}}",
                        "sum by (dialect, reason) (rate(ray_tritext_refusals_total[$__rate_interval]))",
                    )
                ],
                "What was used up: a window, the concurrency of the key, credit.",
            ),
            Graph("Time to first token", "s", _quantiles("tritext_first_token_seconds"), "Of streams, at the ingress."),
            Graph("Time per output token", "s", _quantiles("tritext_token_seconds"), "Of streams, after the first."),
            Graph(
                "Framework time",
                "s",
                _quantiles("tritext_framework_seconds", 'adapter="no"'),
                "What a request took beside its engine: HTTP, keys, limits, tokenizer, Ray Serve.",
            ),
            Graph("Time of whole answers", "s", _quantiles("tritext_request_seconds", 'stream="no"')),
            Graph("Tokens charged", "short", [_sum("tritext_tokens_total", "kind")]),
            Graph("Replicas lost in an answer", "short", [_sum("tritext_replicas_lost_total", "model")]),
        ),
    ),
    (
        "Engines",
        (
            Graph("Queue time", "s", _quantiles("tritext_engine_queue_seconds", by="model")),
            Graph("Engine's time to first token", "s", _quantiles("tritext_engine_first_token_seconds", by="model")),
            Graph("Engine's time per token", "s", _quantiles("tritext_engine_token_seconds", by="model")),
            Graph(
                "Sequences",
                "short",
                [
                    (f"{{{{model}}}} {words}", _gauge(f"tritext_engine_{name}")[1])
                    for words, name in (("running", "running_sequences"), ("waiting", "waiting_sequences"))
                ],
            ),
            Graph(
                "Batch size",
                "short",
                [
                    (
                        "{{model}}",
                        f"sum by (model) ({_rate('tritext_engine_step_sequences_total')})"
                        f" / sum by (model) ({_rate('tritext_engine_steps_total')})",
                    )
                ],
                "Sequences of a step, the mean.",
            ),
            Graph(
                "Time in steps",
                "percentunit",
                [_sum("tritext_engine_step_seconds_total", "model")],
                "1: one engine steps without a pause.",
            ),
            Graph("Tokens computed", "short", [_sum("tritext_engine_step_tokens_total", "model")], "A second."),
            Graph("Prompt tokens that wait", "short", [_gauge("tritext_engine_pending_tokens")]),
            Graph("KV cache in use", "percentunit", [_gauge("tritext_engine_cache_use_ratio", "max")]),
            Graph(
                "Prompt tokens from the prefix cache",
                "percentunit",
                [
                    (
                        "{{model}}",
                        f"sum by (model) ({_rate('tritext_engine_cached_tokens_total')})"
                        f" / sum by (model) ({_rate('tritext_engine_prompt_tokens_total')})",
                    )
                ],
            ),
            Graph("Preemptions", "short", [_sum("tritext_engine_preemptions_total", "model")], "A second."),
            Graph(
                "Adapters",
                "short",
                [
                    ("{{model}} loaded", _gauge("tritext_engine_adapters")[1]),
                    ("{{model}} loads a second", _sum("tritext_engine_adapter_loads_total", "model")[1]),
                ],
            ),
            Graph(
                "Time of an adapter's load",
                "s",
                [
                    (
                        "{{model}}",
                        f"sum by (model) ({_rate('tritext_engine_adapter_load_seconds_total')})"
                        f" / sum by (model) ({_rate('tritext_engine_adapter_loads_total')})",
                    )
                ],
            ),
            Graph("Memory of adapters", "bytes", [_gauge("tritext_engine_adapter_bytes", "max")]),
            Graph(
                "Start of a replica by phase",
                "s",
                [
                    (
                        "{{model}} {{phase}}",
                        f"max by (model, phase) (ray_tritext_generator_start_seconds{{{_OF_MODELS}}})",
                    )
                ],
                "In its constructor; before that, Ray starts a process and Serve calls it.",
                is_stacked=True,
            ),
        ),
    ),
    (
        "What waits",
        (
            Graph("Jobs", "short", [("{{status}}", "max by (status) (ray_tritext_jobs)")]),
            Graph("Oldest queued job", "s", [("age", "max(ray_tritext_oldest_queued_job_seconds)")]),
            Graph(
                "Jobs ended",
                "short",
                [("{{status}}", "sum by (status) (increase(ray_tritext_jobs_ended_total[1h]))")],
                "In the last hour.",
            ),
            Graph("Webhooks pending", "short", [("deliveries", "max(ray_tritext_webhook_deliveries_pending)")]),
            Graph("Webhook lag", "s", [("overdue", "max(ray_tritext_webhook_lag_seconds)")]),
            Graph(
                "Webhooks sent",
                "reqps",
                [
                    (
                        "{{outcome}}",
                        "sum by (outcome) (rate(ray_tritext_webhook_attempts_total[$__rate_interval]))",
                    )
                ],
            ),
            Graph(
                "Reservations",
                "short",
                [
                    ("in the ledger", "max(ray_tritext_ledger_reservations)"),
                    ("in living ingresses", "sum(ray_tritext_open_reservations)"),
                    ("not settled", "sum(ray_tritext_unsettled_requests)"),
                ],
                "Those that no living ingress has are of processes that died, and are settled within a minute.",
            ),
            Graph(
                "Oldest reservation",
                "s",
                [
                    ("in the ledger", "max(ray_tritext_ledger_oldest_reservation_seconds)"),
                    ("in living ingresses", "max(ray_tritext_oldest_reservation_seconds)"),
                ],
            ),
            Graph("Credits held", "short", [("credits", "max(ray_tritext_ledger_held_credits)")]),
        ),
    ),
)


def dashboard_text() -> str:
    document = {
        "uid": "tritext",
        "title": "Tritext",
        "tags": ["tritext"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_datasource_choice(), _model_choice()]},
        "panels": list(_panels()),
    }
    return json.dumps(document, indent=1) + "\n"


def _datasource_choice() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _model_choice() -> dict[str, Any]:
    query = "label_values(ray_tritext_engine_running_sequences, model)"
    return {
        "name": "model",
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": query, "refId": "models"},
        "definition": query,
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _panels() -> Iterator[dict[str, Any]]:
    number = y = 0
    for title, graphs in ROWS:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "panels": [],
            "gridPos": _place(0, y, 24, 1),
        }
        y += 1
        for position, graph in enumerate(graphs):
            number += 1
            row, column = divmod(position, 24 // _WIDTH)
            yield _panel(number, graph, _place(column * _WIDTH, y + row * _HEIGHT, _WIDTH, _HEIGHT))
        y += -(-len(graphs) // (24 // _WIDTH)) * _HEIGHT


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(number: int, graph: Graph, place: dict[str, int]) -> dict[str, Any]:
    stacking = {"mode": "normal", "group": "A"} if graph.is_stacked else {"mode": "none"}
    return {
        "id": number,
        "type": "timeseries",
        "title": graph.title,
        "description": graph.description,
        "datasource": _DATASOURCE,
        "gridPos": place,
        "fieldConfig": {
            "defaults": {
                "unit": graph.unit,
                "min": 0,
                "custom": {"stacking": stacking, "fillOpacity": 20 if graph.is_stacked else 0, "showPoints": "never"},
            },
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": query, "legendFormat": name, "datasource": _DATASOURCE}
            for index, (name, query) in enumerate(graph.lines)
        ],
    }
