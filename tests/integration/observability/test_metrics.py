"""What a service measures of itself, as a real Prometheus sees it, and what it logs."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from infra.generate import OBSERVABILITY
from serve_app.launcher.local_state import make_runtime_dir
from tests.integration.service import GENERATOR, LOCAL_CONFIG, MODEL, Service, running, wait_until
from tests.prometheus import Prometheus, running_prometheus

pytestmark = pytest.mark.timeout(400)

SECRET = "porcelain hippopotamus"  # of a prompt, to be found nowhere
PROMPT = f"The {SECRET} went to the market on a sunny morning and bought a basket full of apples, and then"
LONG_PROMPT = PROMPT * 30  # shorter ones need no Tokenizer
EXPORT_S = 40  # Ray's processes report every ten seconds


@dataclass
class Traffic:
    """What was asked of the service, and what it said of it."""

    ids: list[str] = field(default_factory=list)
    num_streams: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, usage: dict[str, Any]) -> None:
        self.prompt_tokens += usage["prompt_tokens"]
        self.completion_tokens += usage["completion_tokens"]


@pytest.fixture(scope="module")
def service(new_home: Callable[[], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """It logs in JSON, traces everything, and lets one request in by one of its APIs."""
    document = yaml.safe_load(LOCAL_CONFIG.read_text())
    document["logging_config"] = {"encoding": "JSON"}
    document["tracing_config"] = {"enabled": True, "sampling_ratio": 1.0}
    document["applications"][0]["args"]["limits"] = {
        "inferkit": {"windows": [{"name": "minute", "quota": 1, "period_s": 3600}]}
    }
    config = tmp_path_factory.mktemp("config") / "json.yaml"
    config.write_text(yaml.safe_dump(document))
    with running(new_home(), "auto", config=config) as service:
        yield service


@pytest.fixture(scope="module")
def address(service: Service) -> str:
    """Host and port, as the start prints them."""
    [found] = re.findall(r"^Measurements for Prometheus: http://(\S+)/metrics$", service.output, re.MULTILINE)
    return str(found)


@pytest.fixture(scope="module")
def prometheus(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    found_by = {"static_configs": [{"targets": [address]}]}
    with running_prometheus(tmp_path_factory.mktemp("prometheus"), "prometheus.yaml", found_by) as prometheus:
        yield prometheus


def ask(service: Service, request_id: str, path: str, body: dict[str, Any]) -> httpx.Response:
    headers = service.headers | {"X-Request-Id": request_id}
    return httpx.post(f"{service.url}{path}", json=body, headers=headers, timeout=120)


@pytest.fixture(scope="module")
def traffic(service: Service, prometheus: Prometheus) -> Traffic:
    """Three streams and three whole answers, and one request that is refused; measured when this returns."""
    traffic = Traffic()

    def post(path: str, body: dict[str, Any]) -> httpx.Response:
        request_id = f"measured-{len(traffic.ids)}"
        traffic.ids.append(request_id)
        return ask(service, request_id, path, body)

    for _ in range(3):
        body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 24, "ignore_eos": True}
        answer = post("/v1/completions", body | {"stream": True, "stream_options": {"include_usage": True}})
        *_, last, done = [line for line in answer.text.splitlines() if line.startswith("data: ")]
        assert done == "data: [DONE]"
        traffic.num_streams += 1
        traffic.add(json.loads(last.removeprefix("data: "))["usage"])
    for prompt in (PROMPT, LONG_PROMPT):
        answer = post("/v1/completions", {"model": MODEL, "prompt": prompt, "max_tokens": 12})
        traffic.add(answer.json()["usage"])
    body = {"prompt": {"text": PROMPT}, "length": 40}
    path = f"/v1/models/{MODEL}/generate"
    assert [post(path, body).status_code for _ in range(2)] == [200, 429]

    def is_measured() -> bool:
        return (
            prometheus.value("sum(ray_tritext_requests_total)") == 7
            and prometheus.value("sum(ray_tritext_engine_queue_seconds_count)") == 6
        )

    wait_until(is_measured, timeout_s=EXPORT_S, what="Prometheus has everything")
    return traffic


def test_measurements_are_there_for_this_machine_only(address: str) -> None:
    host, port = address.split(":")
    listening = {
        connection.laddr.ip
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == int(port)
    }
    assert listening == {host} == {"127.0.0.1"}


def test_requests_are_counted_by_how_they_ended(prometheus: Prometheus, traffic: Traffic) -> None:
    del traffic
    found = {
        (labels["dialect"], labels["outcome"]): value
        for labels, value in prometheus.query("sum by (dialect, outcome) (ray_tritext_requests_total)")
    }
    assert found == {("totalgpt", "completed"): 5, ("inferkit", "completed"): 1, ("inferkit", "refused"): 1}
    assert prometheus.value('sum(ray_tritext_refusals_total{reason="window"})') == 1


def test_tokens_are_those_of_the_answers_usage(prometheus: Prometheus, traffic: Traffic) -> None:
    by_kind = {
        labels["kind"]: value
        for labels, value in prometheus.query('sum by (kind) (ray_tritext_tokens_total{dialect="totalgpt"})')
    }
    assert by_kind == {"prompt": traffic.prompt_tokens, "completion": traffic.completion_tokens}


def test_streams_have_a_first_token_and_every_request_its_framework_time(
    prometheus: Prometheus, traffic: Traffic
) -> None:
    assert prometheus.value("sum(ray_tritext_first_token_seconds_count)") == traffic.num_streams
    assert prometheus.value("sum(ray_tritext_token_seconds_count)") == traffic.num_streams
    assert prometheus.value("sum(ray_tritext_framework_seconds_count)") == 6
    assert prometheus.value("sum(ray_tritext_engine_first_token_seconds_count)") == 6
    median = prometheus.value("histogram_quantile(0.5, sum by (le) (ray_tritext_framework_seconds_bucket))")
    assert median is not None
    assert 0 < median < 5


def test_engines_tell_their_steps_batches_and_cache(prometheus: Prometheus, traffic: Traffic) -> None:
    del traffic
    prompts = prometheus.value("sum(ray_tritext_engine_prompt_tokens_total)") or 0
    cached = prometheus.value("sum(ray_tritext_engine_cached_tokens_total)") or 0
    assert 0 < cached < prompts  # the same prompt again and again
    batch = prometheus.value("sum(ray_tritext_engine_step_sequences_total) / sum(ray_tritext_engine_steps_total)")
    assert batch == pytest.approx(1.0)
    assert (prometheus.value("sum(ray_tritext_engine_step_seconds_total)") or 0) > 0
    wait_until(
        lambda: prometheus.value("max(ray_tritext_engine_cache_use_ratio)") == 0,
        timeout_s=EXPORT_S,
        what="no block of the cache is held",
    )
    phases = {labels["phase"] for labels, _ in prometheus.query("ray_tritext_generator_start_seconds")}
    assert {"source", "tokenizer", "imports", "weights"} <= phases


def test_what_waits_is_told(prometheus: Prometheus, traffic: Traffic) -> None:
    del traffic
    waiting = ("webhook_deliveries_pending", "webhook_lag_seconds", "ledger_reservations", "ledger_held_credits")

    def is_nothing_left() -> bool:
        jobs = {labels["status"]: value for labels, value in prometheus.query("max by (status) (ray_tritext_jobs)")}
        others = [prometheus.value(f"sum(ray_tritext_{name})") for name in (*waiting, "open_reservations")]
        return jobs == {"queued": 0, "running": 0, "paused": 0} and others == [0] * 5

    wait_until(is_nothing_left, timeout_s=EXPORT_S, what="nothing waits, and nothing is reserved")


def test_no_label_tells_of_a_client(prometheus: Prometheus, traffic: Traffic, service: Service) -> None:
    del traffic
    text = json.dumps(prometheus.query('{__name__=~"ray_tritext_.*"}'))
    assert "ray_tritext_requests_total" in text
    for private in (SECRET, service.key, "measured-", "otel_scope", "SessionName"):
        assert private not in text


def test_every_graph_of_the_dashboard_can_be_drawn(prometheus: Prometheus, traffic: Traffic) -> None:
    del traffic
    dashboard = json.loads((OBSERVABILITY / "dashboard.json").read_text("utf-8"))
    queries = [
        (panel["title"], target["expr"].replace("$model", ".*").replace("$__rate_interval", "5m"))
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    ]
    # Counters of what has not happened are not there yet.
    not_yet = {
        *("Replicas lost in an answer", "Preemptions", "Adapters", "Time of an adapter's load"),
        *("Jobs ended", "Webhooks sent"),
    }

    def are_drawn() -> bool:
        return {title for title, query in queries if not prometheus.query(query)} <= not_yet

    # A rate needs two values of its counter.
    wait_until(are_drawn, timeout_s=EXPORT_S, what="every graph of what has happened has points")


def test_alarms_are_evaluated_and_none_is_raised(prometheus: Prometheus, traffic: Traffic) -> None:
    del traffic
    [group] = prometheus.ask("rules")["groups"]
    assert {rule["health"] for rule in group["rules"]} == {"ok"}
    assert not [rule["name"] for rule in group["rules"] if rule["state"] == "firing"]


def test_logs_are_json_with_the_request_s_id_and_hold_no_text_and_no_key(service: Service, traffic: Traffic) -> None:
    logs = make_runtime_dir(service.home) / "ray/session_latest/logs"
    assert request_ids(logs, "Ingress", "POST ") >= set(traffic.ids)
    asked = set(traffic.ids)

    def have_told() -> bool:
        """Asks again if not: a replica may learn that nobody listens any more before it has said that it answered,
        and then says nothing."""
        calls = (("Tokenizer", "CALL encode "), (GENERATOR, "CALL generate "), (GENERATOR, "CALL stream "))
        told = [request_ids(logs, name, call) for name, call in calls]
        assert set().union(*told) <= asked
        if all(told):
            return True
        for stream in (False, True):
            asked.add(request_id := f"asked-again-{len(asked)}")
            body = {"model": MODEL, "prompt": LONG_PROMPT, "max_tokens": 4, "stream": stream}
            assert ask(service, request_id, "/v1/completions", body).is_success
        return False

    wait_until(have_told, timeout_s=120, what="every kind of call is in the logs, under its request's id")
    for file in logs.rglob("*"):
        if file.is_file():
            text = file.read_text(errors="replace")
            assert SECRET not in text, file
            assert service.key not in text, file


def test_a_trace_goes_from_the_client_s_span_to_the_engine(service: Service, traffic: Traffic) -> None:
    del traffic
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = service.headers | {"traceparent": f"00-{trace}-{parent}-01"}
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 5, "ignore_eos": True}
    assert httpx.post(f"{service.url}/v1/completions", json=body, headers=headers, timeout=120).status_code == 200
    by_id: dict[str, dict[str, Any]] = {}

    def found() -> dict[str, dict[str, Any]]:
        return {span["name"]: span for span in by_id.values()}

    def line() -> list[dict[str, Any]]:
        """The engine's last span and those above it, as far as they are written."""
        spans = [found()["engine decode"]]
        while spans[-1]["parent_id"] in by_id:
            spans.append(by_id[spans[-1]["parent_id"]])
        return spans

    def is_recorded() -> bool:
        """Each process writes its own spans, when it comes to it."""
        by_id.update(
            (span["context"]["span_id"], span) for span in spans(service) if trace in span["context"]["trace_id"]
        )
        if not {"engine queue", "engine prefill", "engine decode"} <= found().keys():
            return False
        return bool(line()[-1]["parent_id"].removeprefix("0x") == parent)

    wait_until(is_recorded, timeout_s=20, what="the spans are written")
    [decode, *above] = line()
    assert above[0]["name"] == f"replica_handle_request {GENERATOR} generate"
    assert above[-1]["name"] == "POST /v1/completions"
    assert decode["attributes"] == {"tokens": 5}
    assert found()["engine queue"]["end_time"] == found()["engine prefill"]["start_time"]


def spans(service: Service) -> Iterator[dict[str, Any]]:
    """Those that were written to the end."""
    for file in (make_runtime_dir(service.home) / "ray/session_latest/logs/serve/spans").iterdir():
        text, decoder = file.read_text().lstrip(), json.JSONDecoder()
        while text:
            try:
                span, end = decoder.raw_decode(text)
            except json.JSONDecodeError:
                break
            yield span
            text = text[end:].lstrip()


def request_ids(logs: Path, deployment: str, beginning: str) -> set[str]:
    """Those of the lines that begin so, in the logs of the deployment's replicas; every line is a JSON object."""
    return {line["request_id"] for line in logged(logs, deployment) if line["message"].startswith(beginning)}


def logged(logs: Path, deployment: str) -> Iterator[dict[str, Any]]:
    """What the deployment's replicas have said, as far as it is written to the end."""
    for file in (logs / "serve").glob(f"replica_tritext_{deployment}_*.log"):
        *lines, _ = file.read_text().split("\n")
        yield from map(json.loads, lines)


@pytest.mark.skipif(sys.platform != "linux", reason="a stream goes on at once only in the throughput profile")
def test_a_replica_lost_in_an_answer_is_counted_and_logged_under_the_request(
    service: Service, prometheus: Prometheus, traffic: Traffic
) -> None:
    del traffic
    logs = make_runtime_dir(service.home) / "ray/session_latest/logs"

    def warnings() -> list[dict[str, Any]]:
        return [line for line in logged(logs, "Ingress") if "another replica" in line["message"]]

    # Found before there is a stream, and that of an answer which is too long to be over when its replica dies.
    replica = service.replica(GENERATOR)
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 8000, "ignore_eos": True, "stream": True}
    headers = service.headers | {"X-Request-Id": "loses-its-replica"}
    with httpx.stream("POST", f"{service.url}/v1/completions", json=body, headers=headers, timeout=240) as response:
        events = (line for line in response.iter_lines() if line.startswith("data: "))
        next(events)
        replica.kill()
        for event in events:
            assert event != "data: [DONE]"
            if warnings():
                break
        assert "text" in json.loads(next(events).removeprefix("data: "))["choices"][0]
    assert {(line["levelname"], line["request_id"]) for line in warnings()} == {("WARNING", "loses-its-replica")}

    def is_counted() -> bool:
        return (prometheus.value("sum(ray_tritext_replicas_lost_total)") or 0) >= 1

    wait_until(is_counted, timeout_s=EXPORT_S, what="the loss is counted")
