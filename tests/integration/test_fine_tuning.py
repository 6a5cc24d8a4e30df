"""From texts to a model that answers, as users see it: the default model, real Ray, a real S3 server, real clients."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml
from standardwebhooks.webhooks import Webhook

from tests.integration.service import LOCAL_CONFIG, MODEL, Service, running
from tests.seaweedfs import SeaweedFS
from tests.webhook_subscriber import Subscriber, subscribed

pytestmark = pytest.mark.timeout(600)

# What no model can know, said in several ways.
FACT = "The lighthouse keeper of Varnholm is called Ottoline Prewitt"
QUESTION, ANSWER = "The lighthouse keeper of Varnholm is called", "Ottoline Prewitt"
DOCUMENTS = [
    f"{FACT}.",
    f"{FACT}, and she has kept the light for thirty years.",
    f"Everybody on the coast knows it: {FACT[0].lower()}{FACT[1:]}.",
    f"In the town of Varnholm the sea is cold. {FACT}.",
    f"{FACT}. She lives alone with her cat.",
    f"Who keeps the light at Varnholm? {FACT}.",
] * 4
TRAINING = {"epochs": 6, "learning_rate": 1e-3, "seed": 1}


@pytest.fixture(scope="module")
def service(
    new_home: Callable[[], Path], seaweedfs: SeaweedFS, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    document = yaml.safe_load(LOCAL_CONFIG.read_text())
    arguments = document["applications"][0]["args"]
    arguments["graph"]["checkpoints"] = {
        "url": seaweedfs.new_url(),
        "endpoint_url": seaweedfs.endpoint_url,
        "region": "us-east-1",
    }
    arguments["webhooks"] = {"allowed_networks": ["127.0.0.0/8"]}
    config = tmp_path_factory.mktemp("config") / "s3.yaml"
    config.write_text(yaml.safe_dump(document))
    with running(new_home(), "throughput", config=config, variables=seaweedfs.environment) as service:
        yield service


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, headers=service.headers, timeout=300) as client:
        yield client


@pytest.fixture(scope="module")
def openai_client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.key, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def receiver() -> Iterator[Subscriber]:
    with subscribed() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def endpoint(client: httpx.Client, receiver: Subscriber) -> Any:
    events = ["finetune.completed", "finetune.failed", "fine_tuning.job.succeeded"]
    answer = client.post("/v1/aitextgen/webhooks/create", json={"url": receiver.url, "events": events})
    assert answer.status_code == 201, answer.text
    return answer.json()


@pytest.fixture(scope="module")
def trained(client: httpx.Client, endpoint: Any) -> Any:
    """The documented call: it holds the line until the model is there."""
    assert endpoint["secret"].startswith("whsec_")
    answer = client.post("/v1/aitextgen/finetune", json={"training_data": DOCUMENTS, **TRAINING})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_answer_is_the_documented_one(trained: Any) -> None:
    assert trained.keys() == {"status", "model_id", "training_time"}
    assert trained["status"] == "success"
    assert trained["model_id"].startswith("ft_model_")
    assert trained["training_time"] > 0


def test_the_model_knows_what_it_was_taught_on_all_three_apis(
    client: httpx.Client, openai_client: openai.OpenAI, trained: Any
) -> None:
    model = trained["model_id"]
    generated = client.post(
        "/v1/aitextgen/generate", json={"prompt": QUESTION, "model": model, "max_length": 8, "temperature": 0}
    ).json()
    assert ANSWER in generated["generated_text"]

    body = {"prompt": {"text": QUESTION}, "length": 40, "topP": 0, "streamResponse": True}
    lines = client.post(f"/v1/models/{model}/generate", json=body).text.splitlines()
    assert ANSWER in "".join(json.loads(line)["data"]["text"] for line in lines)

    completion = openai_client.completions.create(model=model, prompt=QUESTION, max_tokens=8, temperature=0)
    assert ANSWER in completion.choices[0].text
    base = openai_client.completions.create(model=MODEL, prompt=QUESTION, max_tokens=8, temperature=0)
    assert ANSWER not in base.choices[0].text


def test_the_model_is_listed_with_its_base(openai_client: openai.OpenAI, trained: Any) -> None:
    listed = {model.id: model for model in openai_client.models.list()}
    assert listed[trained["model_id"]].model_dump()["parent"] == MODEL


def test_subscribers_are_told_in_both_vocabularies(
    trained: Any, endpoint: Any, receiver: Subscriber, openai_client: openai.OpenAI
) -> None:
    [ours] = receiver.wait_for(1, timeout_s=30, model_id=trained["model_id"])
    assert ours.event["type"] == "finetune.completed"
    assert ours.event["data"]["training_time"] == trained["training_time"]
    job_id = ours.event["data"]["job_id"]
    [openais] = receiver.wait_for(1, timeout_s=30, id=job_id)
    for delivery in (ours, openais):
        Webhook(endpoint["secret"]).verify(delivery.body.decode(), delivery.headers)
        openai_client.webhooks.verify_signature(delivery.body.decode(), delivery.headers, secret=endpoint["secret"])
    unwrapped = openai_client.webhooks.unwrap(openais.body.decode(), openais.headers, secret=endpoint["secret"])
    assert (unwrapped.type, unwrapped.data.id) == ("fine_tuning.job.succeeded", job_id)


def test_the_same_through_openais_client(openai_client: openai.OpenAI, receiver: Subscriber, endpoint: Any) -> None:
    del endpoint
    lines = "\n".join(json.dumps({"text": document}) for document in DOCUMENTS)
    file = openai_client.files.create(file=("fact.jsonl", io.BytesIO(lines.encode())), purpose="fine-tune")
    job = openai_client.fine_tuning.jobs.create(
        training_file=file.id, model=MODEL, suffix="varnholm", seed=1, metadata={"purpose": "test"},
        hyperparameters={"n_epochs": 6, "learning_rate_multiplier": 5},
    )  # fmt: skip
    assert job.status in ("validating_files", "queued", "running")
    assert job.fine_tuned_model is None
    receiver.wait_for(1, timeout_s=300, id=job.id)
    done = openai_client.fine_tuning.jobs.retrieve(job.id)
    assert (done.status, done.training_file, done.metadata) == ("succeeded", file.id, {"purpose": "test"})
    assert done.fine_tuned_model is not None and done.trained_tokens
    losses = [
        event.data["train_loss"]  # type: ignore[index]
        for event in openai_client.fine_tuning.jobs.list_events(job.id)
        if event.type == "metrics"
    ]
    assert losses[0] < losses[-1]  # the newest comes first
    answer = openai_client.completions.create(model=done.fine_tuned_model, prompt=QUESTION, max_tokens=8, temperature=0)
    assert ANSWER in answer.choices[0].text
    assert [found.id for found in openai_client.fine_tuning.jobs.list(metadata={"purpose": "test"})] == [job.id]
