"""The files for Prometheus and Grafana: they name what is measured, with the labels that it has."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

from deployments import continuing, generator_metrics
from deployments.meter import Counter, Gauge, Histogram, Metric
from infra.generate import ALERTS, OBSERVABILITY
from serve_app.launcher import ports
from serve_app.use_cases import admission, backlog, job_run, request_metrics, webhook_delivery
from tests.unit.infra.files import documents, manifest

MODULES = (generator_metrics, continuing, request_metrics, admission, backlog, job_run, webhook_delivery)
METRICS: dict[str, Metric] = {metric.name: metric for module in MODULES for metric in module.METRICS}
DASHBOARD: dict[str, Any] = json.loads((OBSERVABILITY / "dashboard.json").read_text("utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES = [rule for group in documents(ALERTS)[0]["groups"] for rule in group["rules"]]

_SERIES = re.compile(r"\bray_(tritext_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')
_GROUPS = re.compile(r"\bby \(([^)]*)\)")
_WORDS_OF_HISTOGRAMS = ("_bucket", "_sum", "_count")


def queries() -> Iterator[str]:
    yield from (target["expr"] for panel in PANELS for target in panel["targets"])
    yield from (rule["expr"] for rule in RULES)
    yield DASHBOARD["templating"]["list"][1]["query"]["query"]


def metric_of(series: str) -> Metric:
    """What is measured under the name that Prometheus sees, without the `ray_` before it."""
    for word in _WORDS_OF_HISTOGRAMS:
        found = METRICS.get(series.removesuffix(word))
        if series.endswith(word) and isinstance(found, Histogram):
            return found
    found = METRICS[series]
    assert not isinstance(found, Histogram), f"{series} is a histogram: it has _bucket, _sum and _count"
    return found


def test_names_say_units_and_kinds_and_are_used_once() -> None:
    assert len(METRICS) == sum(len(module.METRICS) for module in MODULES)
    for name, metric in METRICS.items():
        assert name.startswith("tritext_")
        assert name.endswith("_total") == isinstance(metric, Counter)
        if isinstance(metric, Histogram):
            assert name.endswith("_seconds")
            assert list(metric.bounds) == sorted(set(metric.bounds))
        assert metric.help


def test_labels_are_of_few_values() -> None:
    labels = {label for metric in METRICS.values() for label in metric.labels}
    assert labels == {"model", "adapter", "phase", "dialect", "outcome", "stream", "kind", "reason", "status"}


@pytest.mark.parametrize("query", sorted(set(queries())))
def test_a_query_names_what_is_measured_by_labels_that_it_has(query: str) -> None:
    series = _SERIES.findall(query)
    if 'up{job="tritext"}' in query:
        assert not series
        return
    assert series
    known = set.union(*(set(metric_of(name).labels) for name, _ in series)) | {"le"}
    for name, matchers in series:
        assert set(_MATCHER.findall(matchers)) <= set(metric_of(name).labels)
    for groups in _GROUPS.findall(query):
        assert {group.strip() for group in groups.split(",")} <= known


def test_counters_are_asked_for_their_rate_and_gauges_are_not() -> None:
    for query in queries():
        for found in _SERIES.finditer(query):
            metric = metric_of(found.group(1))
            is_rate = re.search(r"(rate|increase)\($", query[: found.start()]) is not None
            assert is_rate == (not isinstance(metric, Gauge)), query


def test_everything_that_is_measured_is_drawn() -> None:
    drawn = {
        metric_of(name).name
        for panel in PANELS
        for target in panel["targets"]
        for name, _ in _SERIES.findall(target["expr"])
    }
    assert drawn == METRICS.keys()


def test_panels_have_places_of_their_own() -> None:
    cells = [
        (place["x"] + x, place["y"] + y)
        for panel in DASHBOARD["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["w"])
        for y in range(place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_alarms_say_how_urgent_they_are_and_what_to_do() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]
    names = [rule["alert"] for rule in RULES]
    assert len(names) == len(set(names))


def test_prometheus_asks_where_the_service_says() -> None:
    [config] = documents(OBSERVABILITY / "prometheus.yaml")
    [job] = config["scrape_configs"]
    assert config["rule_files"] == [ALERTS.name]
    assert job["job_name"] == "tritext"  # as alarms name it
    [target] = job["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert host == ports.HOST
    assert int(port) in {ports.choose(8000).measurements, 9464}


def test_on_a_cluster_prometheus_asks_those_whom_ray_names_and_nobody_else() -> None:
    [config] = documents(OBSERVABILITY / "prometheus_cluster.yaml")
    [job] = config["scrape_configs"]
    assert config["rule_files"] == [ALERTS.name]
    assert [key for key in job if key.endswith("_sd_configs") or key == "static_configs"] == ["file_sd_configs"]
    [found] = job["file_sd_configs"]
    assert [Path(name).name for name in found["files"]] == [PROMETHEUS_SERVICE_DISCOVERY_FILE]
    # A machine that is gone must be forgotten before its alarm is raised.
    [unmeasured] = [rule for rule in RULES if rule["alert"] == "TritextUnmeasured"]
    assert (found["refresh_interval"], unmeasured["for"]) == ("30s", "5m")


def test_in_kubernetes_the_pods_are_found_and_the_alarms_are_the_same() -> None:
    monitor, rules = documents(OBSERVABILITY / "kubernetes.yaml")
    assert rules["spec"]["groups"] == documents(ALERTS)[0]["groups"]
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    cluster = manifest("RayService", "tritext")["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for template in (group["template"] for group in groups):
        labels = template["metadata"]["labels"]
        assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert labels[monitor["spec"]["jobLabel"]] == "tritext"
        found = [
            port for box in template["spec"]["containers"] for port in box["ports"] if port["name"] == endpoint["port"]
        ]
        assert found
    assert {each["metadata"]["namespace"] for each in (monitor, rules)} == {"tritext"}


@pytest.mark.parametrize("name", ["prometheus.yaml", "prometheus_cluster.yaml"])
def test_kept_series_are_the_same_everywhere(name: str) -> None:
    [config] = documents(OBSERVABILITY / name)
    monitor, _ = documents(OBSERVABILITY / "kubernetes.yaml")
    keep, drop = config["scrape_configs"][0]["metric_relabel_configs"]
    kept, dropped = monitor["spec"]["podMetricsEndpoints"][0]["metricRelabelings"]
    assert (keep["regex"], drop["regex"]) == (kept["regex"], dropped["regex"])
    assert re.fullmatch(keep["regex"], "ray_tritext_requests_total")
    assert yaml.safe_dump(keep["source_labels"]) == yaml.safe_dump(kept["sourceLabels"])
