"""A model that sleeps, seen from outside: it holds nothing, wakes for the first request, and goes to sleep again."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml
from langchain_openai import OpenAI

from tests.factories import make_tiny_model
from tests.integration.service import LOCAL_CONFIG, Service, running, wait_until

pytestmark = [pytest.mark.timeout(400), pytest.mark.filterwarnings("ignore:::litellm")]

MODEL, ABSENT = "tiny", "absent"
GENERATOR, UNREACHABLE = f"Generator-{MODEL}", f"Generator-{ABSENT}"
WAIT_S = 30
PROMPT = "The keeper of the lighthouse"
NUM_FLOOD = 600


@contextmanager
def sleepy(directory: Path, *, min_awake: int = 0, **graph: Any) -> Iterator[Service]:
    """A service with two models that sleep, one of which asks for a machine that does not exist.

    min_awake: so many replicas of the other stay awake. graph: settings beside the models.
    """
    document = yaml.safe_load(LOCAL_CONFIG.read_text())
    [application] = document["applications"]
    engine = {"dtype": "float32", "kv_cache_bytes": 4 * 1024 * 1024}
    source = str(make_tiny_model(directory / "model"))
    application["args"] = {
        "graph": {
            "models": [{"id": model, "source": source, "engine": engine} for model in (MODEL, ABSENT)],
            **graph,
        },
        "http": {"stream_keep_alive_s": 0.5},
        "limits": {"aitextgen": {"windows": []}},
    }
    scaling = {
        "min_replicas": 0,
        "max_replicas": 2,
        "target_ongoing_requests": 32,
        "metrics_interval_s": 0.5,
        "look_back_period_s": 2,
        "upscale_delay_s": 0,
        "downscale_delay_s": 2,
        "downscale_to_zero_delay_s": 8,
    }
    application["deployments"] = [
        *(each for each in application["deployments"] if not each["name"].startswith("Generator-")),
        {
            "name": GENERATOR,
            "ray_actor_options": {"num_cpus": 0.5},
            "autoscaling_config": scaling | {"min_replicas": min_awake},
        },
        {
            "name": UNREACHABLE,
            "ray_actor_options": {"num_cpus": 0.5, "resources": {"nowhere": 1}},
            "autoscaling_config": scaling,
        },
    ]
    config = directory / "zero.yaml"
    config.write_text(yaml.safe_dump(document))
    home = directory / "home"
    home.mkdir()
    with running(home, "auto", config=config) as service:
        yield service


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """Gives a model time to wake."""
    with sleepy(tmp_path) as service:
        yield service


@pytest.fixture
def impatient_service(tmp_path: Path) -> Iterator[Service]:
    """Refuses soon who waits for a model; the one that can be had does not sleep, so that nobody waits for it."""
    with sleepy(tmp_path, min_awake=1, replica_wait_s=WAIT_S) as service:
        yield service


Ask = Callable[[Service], str]


def post(service: Service, path: str, body: dict[str, Any], request_id: str = "") -> httpx.Response:
    headers = service.headers | ({"x-request-id": request_id} if request_id else {})
    return httpx.post(service.url + path, json=body, headers=headers, timeout=120)


def whole_completion(service: Service) -> str:
    answer = post(service, "/v1/completions", {"model": MODEL, "prompt": PROMPT, "max_tokens": 20, "temperature": 0})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def whole_aitextgen(service: Service) -> str:
    answer = post(service, "/v1/aitextgen/generate", {"prompt": PROMPT, "max_length": 20, "temperature": 0})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["generated_text"])


def stream_of_inferkit(service: Service) -> str:
    body = {"prompt": {"text": PROMPT, "isContinuation": True}, "length": 40, "topP": 0, "streamResponse": True}
    answer = post(service, f"/v1/models/{MODEL}/generate", body)
    assert answer.status_code == 200, answer.text
    lines = [json.loads(line)["data"] for line in answer.text.splitlines()]
    assert lines[-1]["isFinalChunk"]
    return "".join(line["text"] for line in lines)


def stream_of_openai(service: Service) -> str:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.key, max_retries=0) as client:
        chunks = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=20, temperature=0, stream=True)
        return "".join(chunk.choices[0].text for chunk in chunks)


def stream_of_langchain(service: Service) -> str:
    with httpx.Client() as client:
        llm = OpenAI(
            base_url=f"{service.url}/v1", api_key=service.key, model=MODEL, temperature=0, max_tokens=20,
            max_retries=0, http_client=client,
        )  # fmt: skip
        return "".join(llm.stream(PROMPT))


def stream_of_litellm(service: Service) -> str:
    chunks = litellm().text_completion(
        model=f"text-completion-openai/{MODEL}", prompt=PROMPT, max_tokens=20, temperature=0, stream=True,
        api_base=f"{service.url}/v1", api_key=service.key, num_retries=0, timeout=120,
    )  # fmt: skip
    return "".join(chunk.choices[0].text or "" for chunk in chunks)


def litellm() -> Any:
    """Imported here: at its import it would fetch a list of prices, unless it is told to use its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        import litellm
    return litellm


OF_COMPLETIONS: list[Ask] = [whole_completion, stream_of_openai, stream_of_langchain, stream_of_litellm]
ASKS: list[Ask] = [*OF_COMPLETIONS, whole_aitextgen, stream_of_inferkit]


def bytes_of_stream(service: Service) -> bytes:
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 20, "temperature": 0, "stream": True}
    return post(service, "/v1/completions", body).content


def text_of(stream: bytes) -> str:
    """What the events say; among them are as many comments as there were silences."""
    *events, done = [line for line in stream.splitlines() if line.startswith(b"data: ")]
    assert done == b"data: [DONE]"
    return "".join(json.loads(event.removeprefix(b"data: "))["choices"][0]["text"] for event in events)


@contextmanager
def repeating(act: Callable[[], object]) -> Iterator[None]:
    """Does it again and again while the context lasts."""
    is_over = threading.Event()

    def run() -> None:
        while not is_over.wait(0.3):
            act()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def wait_until_ready(service: Service) -> None:
    """A busy controller may take longer to answer than the probe waits for it."""

    def is_ready() -> bool:
        return httpx.get(f"{service.url}/ready", timeout=30).status_code == 200

    wait_until(is_ready, timeout_s=60, what="ready")


def wait_until_free(service: Service, num_cpus: float) -> None:
    def are_free() -> bool:
        return service.free_cpus() == pytest.approx(num_cpus)

    wait_until(are_free, timeout_s=30, what=f"{num_cpus:g} CPUs are free")


def sleep_until_asleep(service: Service) -> None:
    wait_until(lambda: not service.replicas(GENERATOR), timeout_s=60, what="the generator's process has ended")
    wait_until(lambda: GENERATOR in service.healthy_deployments(), timeout_s=30, what="Serve has noticed it")


def test_one_replica_comes_for_the_first_requests_and_goes_when_nobody_asks(service: Service) -> None:
    assert service.replicas(GENERATOR) == []
    wait_until_ready(service)
    free_cpus = service.free_cpus()
    litellm()

    pids: set[int] = set()
    watching = repeating(lambda: pids.update(process.pid for process in service.replicas(GENERATOR)))
    with watching, ThreadPoolExecutor(len(ASKS) + 1) as clients:
        raw = clients.submit(bytes_of_stream, service)
        answers = dict(zip(ASKS, clients.map(lambda ask: ask(service), ASKS), strict=True))
        content = raw.result()
    with repeating(lambda: whole_completion(service)):  # so that it stays awake
        [replica] = service.replicas(GENERATOR)
        assert pids == {replica.pid}
        wait_until_free(service, free_cpus - 0.5)
        # Every client was given the answer of a model that is awake, the signs of life notwithstanding.
        assert content.startswith(b": keep-alive\n\n")
        assert all(answers.values())
        assert {answers[ask] for ask in OF_COMPLETIONS} == {whole_completion(service)}
        for ask in (whole_aitextgen, stream_of_inferkit):
            assert answers[ask] == ask(service)
        assert text_of(content) == text_of(bytes_of_stream(service)) == answers[whole_completion]

    sleep_until_asleep(service)
    replica.wait(30)
    wait_until_free(service, free_cpus)
    wait_until_ready(service)

    assert whole_completion(service) == answers[whole_completion]
    sleep_until_asleep(service)


def test_who_waits_for_a_model_that_cannot_wake_is_told_so_and_keeps_nobody_else_out(
    impatient_service: Service,
) -> None:
    service = impatient_service
    with ThreadPoolExecutor(len(OF_ABSENT)) as clients:
        waiting = {kind: clients.submit(ask_absent, service, kind) for kind in OF_ABSENT}
        wait_until(lambda: len(open_lines(service)) == len(OF_ABSENT), timeout_s=WAIT_S - 5, what="all wait")
        wait_until_ready(service)
        assert not any(answer.done() for answer in waiting.values())
        asyncio.run(flood(service))
        refused = {kind: answer.result() for kind, answer in waiting.items()}

    for kind, (answer, seconds) in refused.items():
        assert WAIT_S <= seconds < WAIT_S + 20, kind
        if kind.endswith("stream"):
            assert answer.status_code == 200
            last = [line for line in answer.text.splitlines() if line and line != "data: [DONE]"][-1]
            error = json.loads(last.removeprefix("data: "))["error"]
        else:
            assert answer.status_code == 503, kind
            assert int(answer.headers["retry-after"]) >= 1
            error = answer.json()["error"]
        assert (error["code"], error["extensions"]["code"]) == ("overloaded", "OVERLOADED"), kind
        assert f"within {WAIT_S} s" in error["message"]
    assert refused["totalgpt stream"][0].text.endswith("data: [DONE]\n\n")

    wait_until(lambda: not open_lines(service), timeout_s=30, what="nothing is reserved")
    of_refused = [line for line in ledger(service) if line["id"].startswith("absent-")]
    assert len(of_refused) == len(refused)
    assert {(line["outcome"], line["cost"]) for line in of_refused} == {("failed", 0)}


OF_ABSENT: dict[str, tuple[str, dict[str, Any]]] = {
    "totalgpt": ("/v1/completions", {"model": ABSENT, "prompt": PROMPT}),
    "totalgpt stream": ("/v1/completions", {"model": ABSENT, "prompt": PROMPT, "stream": True}),
    "inferkit": (f"/v1/models/{ABSENT}/generate", {"length": 20}),
    "inferkit stream": (f"/v1/models/{ABSENT}/generate", {"length": 20, "streamResponse": True}),
    "aitextgen": ("/v1/aitextgen/generate", {"model": ABSENT, "prompt": PROMPT}),
}


def ask_absent(service: Service, kind: str) -> tuple[httpx.Response, float]:
    """The answer, and after how many seconds it came."""
    path, body = OF_ABSENT[kind]
    began_at = time.monotonic()
    return post(service, path, body, f"absent-{kind.replace(' ', '-')}"), time.monotonic() - began_at


def ledger(service: Service) -> list[dict[str, Any]]:
    lines = httpx.get(f"{service.url}/v1/admin/ledger?format=jsonl", headers=service.headers, timeout=60).text
    return [json.loads(line) for line in lines.splitlines()]


def open_lines(service: Service) -> list[dict[str, Any]]:
    return [line for line in ledger(service) if line["settled_at"] is None]


async def flood(service: Service) -> None:
    """More requests for the absent model than may wait: some are refused at once, one for another model is answered."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=service.url, headers=service.headers, limits=limits, timeout=120) as client:
        path, body = OF_ABSENT["totalgpt"]
        tasks = [asyncio.create_task(client.post(path, json=body)) for _ in range(NUM_FLOOD)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert await asyncio.to_thread(whole_completion, service)
        await asyncio.to_thread(wait_until_ready, service)
        done = [task.result() for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert {answer.status_code for answer in done} == {503}
    messages = [answer.json()["error"]["message"] for answer in done]
    early = [message for message in messages if message == "too many requests wait for a replica"]
    assert 0 < len(early) < NUM_FLOOD / 2
    # Those that were let in have waited as long as they may, should all this have taken so long.
    assert all(f"within {WAIT_S} s" in message for message in messages if message not in early)
