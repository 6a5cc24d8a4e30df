"""InferKit's custom generators: documents in, id and name out, deployed and undeployed."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from deployments.config import ModelConfig
from serve_app.config import FineTuningConfig
from serve_app.use_cases.models import ModelCatalog, Models
from tests.api.administration import Service, client_of, running_service
from tests.api.conftest import MODEL
from tests.fake_fine_tuner import SUCCESS, FakeFineTuner, Script, Silence, progress, started

PATH = "/v1/models"
DOCUMENTS = ["Once upon a time there was a fox.", "It lived by the sea."]
SMALL = FineTuningConfig(min_generator_bytes=10, retry_s=0.01)
HANGING: Script = (started(), progress(1), Silence.FOREVER)


@asynccontextmanager
async def tuning(
    url: str, *scripts: Script, config: FineTuningConfig = SMALL
) -> AsyncIterator[tuple[Service, httpx.AsyncClient, FakeFineTuner]]:
    fine_tuner = FakeFineTuner(*scripts)
    async with running_service(url, fine_tuner=fine_tuner, fine_tuning=config) as service:
        key, _ = await service.new_key("acme", scopes=["inference", "fine-tune"])
        async with service.with_key(key) as client:
            yield service, client, fine_tuner


async def train(service: Service, client: httpx.AsyncClient, **fields: Any) -> str:
    """The id of a new generator whose training has ended."""
    response = await client.post(PATH, json={"name": "fox", "documents": DOCUMENTS, **fields})
    assert response.status_code == 201, response.text
    [job, *_] = await service.services.fine_tuning.list("acme")
    await service.services.fine_tuning.wait("acme", job.id, timeout_s=20)
    return str(response.json()["id"])


async def test_generator_is_made_of_documents_and_used_by_its_id(sqlite_url: str) -> None:
    async with tuning(sqlite_url, HANGING, SUCCESS) as (service, client, fine_tuner):
        response = await client.post(PATH, json={"name": "fox", "documents": DOCUMENTS})
        assert response.status_code == 201
        made = response.json()
        assert made == {"id": made["id"], "name": "fox", "deploymentStage": "Deploying", "undeployAt": None}
        assert response.headers["location"] == f"{PATH}/{made['id']}"
        await fine_tuner.silent.wait()
        shown = (await client.get(f"{PATH}/{made['id']}")).json()
        assert {name: shown[name] for name in made} == made
        [job] = await service.services.fine_tuning.list("acme")
        assert (job.dialect, job.base_model, job.name) == ("inferkit", MODEL, "fox")
        generating = f"{PATH}/{made['id']}/generate"
        assert (await client.post(generating, json={"length": 20})).status_code == 404
        for change in ("deploy", "undeploy"):
            assert (await client.post(f"{PATH}/{made['id']}/{change}")).status_code == 409
        await service.services.fine_tuning.pause("acme", job.id)
        await service.services.fine_tuning.resume("acme", job.id)
        await service.services.fine_tuning.wait("acme", job.id, timeout_s=20)
        shown = (await client.get(f"{PATH}/{made['id']}")).json()
        assert {name: shown[name] for name in made} == {**made, "deploymentStage": "Deployed"}
        assert (await client.post(generating, json={"length": 20})).status_code == 200


async def test_generator_is_made_of_an_uploaded_file(sqlite_url: str) -> None:
    async with tuning(sqlite_url) as (service, client, fine_tuner):
        files = {"file": ("a.jsonl", b'"Once upon a time."')}
        uploaded = (await client.post("/v1/files", files=files, data={"purpose": "fine-tune"})).json()["id"]
        await train(service, client, documents=None, file=uploaded)
        [job] = await service.services.fine_tuning.list("acme")
        assert job.training_file == uploaded
        assert len(fine_tuner.requests) == 1


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"name": None}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": "x\0"}, "name"),
        ({"documents": None}, "documents"),
        ({"documents": []}, "documents"),
        ({"documents": "text"}, "documents"),
        ({"documents": ["a", ""]}, "documents[1]"),
        ({"documents": ["too short"]}, "documents"),
        ({"file": "file-1"}, "documents"),
        ({"documents": None, "file": "file-nobody"}, "file"),
        ({"documents": None, "file": "\0"}, "file"),
        ({"epochs": 3}, "epochs"),
    ],
)
async def test_bad_field_is_400_and_named(sqlite_url: str, changes: dict[str, Any], param: str) -> None:
    async with tuning(sqlite_url) as (service, client, _tuner):
        response = await client.post(PATH, json={"name": "fox", "documents": DOCUMENTS, **changes})
        assert response.status_code == 400, response.text
        assert response.json()["error"]["param"] == param
        assert await service.services.fine_tuning.list("acme") == []


async def test_data_has_a_least_and_a_largest_size(sqlite_url: str) -> None:
    config = FineTuningConfig(min_generator_bytes=20, max_data_bytes=40, max_documents=3)
    async with tuning(sqlite_url, config=config) as (_, client, _tuner):
        files = {"file": ("a.jsonl", b'"short"')}
        file = (await client.post("/v1/files", files=files, data={"purpose": "fine-tune"})).json()["id"]
        for fields, param in (
            ({"documents": ["x" * 19]}, "documents"),
            ({"documents": ["x" * 41]}, "documents[0]"),
            ({"documents": ["x" * 10] * 4}, "documents"),
            ({"file": file}, "file"),
        ):
            response = await client.post(PATH, json={"name": "fox", **fields})
            assert (response.status_code, response.json()["error"]["param"]) == (400, param)
        assert (await client.post(PATH, json={"name": "fox", "documents": ["x" * 20]})).status_code == 201


async def test_default_bounds_are_those_of_the_documentation() -> None:
    config = FineTuningConfig()
    assert (config.min_generator_bytes, config.max_data_bytes, config.max_documents) == (50_000, 20 * 2**20, 20_000)


async def test_body_and_key_are_read_as_on_other_routes_of_this_api(sqlite_url: str) -> None:
    async with tuning(sqlite_url) as (_, client, _tuner):
        body = json.dumps({"name": "fox", "documents": DOCUMENTS})[:-1] + ",}"
        key = client.headers["Authorization"].removeprefix("Bearer ")
        headers = {"Content-Type": "text/plain", "Authorization": key}
        assert (await client.post(PATH, content=body, headers=headers)).status_code == 201


async def test_generator_is_undeployed_and_deployed_again(sqlite_url: str) -> None:
    async with tuning(sqlite_url) as (service, client, _tuner):
        generator = await train(service, client)
        generating = f"{PATH}/{generator}/generate"
        for _ in range(2):
            response = await client.post(f"{PATH}/{generator}/undeploy")
            assert response.json() == {
                "id": generator,
                "name": "fox",
                "deploymentStage": "Undeployed",
                "undeployAt": None,
            }
        response = await client.post(generating, json={"length": 20})
        assert response.status_code == 400
        assert response.json()["error"]["extensions"]["code"] == "GENERATOR_NOT_DEPLOYED"
        response = await client.post(f"{PATH}/{generator}/deploy", json={"autoUndeployAt": "2999-12-31T23:00:00Z"})
        assert response.json()["undeployAt"] == "2999-12-31T23:00:00Z"
        assert (await client.post(generating, json={"length": 20})).status_code == 200
        assert (await client.get(f"{PATH}/{generator}")).json()["undeployAt"] == "2999-12-31T23:00:00Z"
        response = await client.post(f"{PATH}/{generator}/deploy")
        assert (response.json()["deploymentStage"], response.json()["undeployAt"]) == ("Deployed", None)


@pytest.mark.parametrize(
    "body", [{"autoUndeployAt": "2001-01-01T00:00:00Z"}, {"autoUndeployAt": "soon"}, {"autoUndeployAt": 5}]
)
async def test_time_to_undeploy_must_be_in_the_future(sqlite_url: str, body: dict[str, Any]) -> None:
    async with tuning(sqlite_url) as (service, client, _tuner):
        generator = await train(service, client)
        response = await client.post(f"{PATH}/{generator}/deploy", json=body)
        assert (response.status_code, response.json()["error"]["param"]) == (400, "autoUndeployAt")


async def test_configured_models_are_always_deployed(sqlite_url: str) -> None:
    async with tuning(sqlite_url) as (_, client, _tuner):
        response = await client.post(f"{PATH}/standard/deploy")
        assert (response.status_code, response.json()["deploymentStage"]) == (200, "Deployed")
        for path, body in (("undeploy", {}), ("deploy", {"autoUndeployAt": "2999-01-01T00:00:00Z"})):
            assert (await client.post(f"{PATH}/standard/{path}", json=body)).status_code == 400


async def test_generator_of_another_account_is_not_there(sqlite_url: str) -> None:
    async with tuning(sqlite_url) as (service, client, _tuner):
        generator = await train(service, client)
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/deploy"), ("POST", "/undeploy")):
            response = await service.admin.request(method, f"{PATH}/{generator}{path}")
            assert response.status_code == 404, path
        assert (await client.get(f"{PATH}/{generator}")).json()["deploymentStage"] == "Deployed"


async def test_configured_model_cannot_be_deleted(sqlite_url: str) -> None:
    async with tuning(sqlite_url) as (_, client, _tuner):
        assert (await client.delete(f"{PATH}/standard")).status_code == 403


async def test_generator_whose_base_is_not_configured_any_more_can_be_deleted(sqlite_url: str) -> None:
    async with tuning(sqlite_url) as (service, client, _tuner):
        generator = await train(service, client)
        catalog = ModelCatalog((ModelConfig(id="another", source="nowhere"),))
        services = replace(service.services, models=Models(catalog, service.services.tuned_models))
        key, _ = await service.new_key("acme", scopes=["inference", "fine-tune"])
        async with client_of(services, key) as later:
            assert (await later.get(f"{PATH}/{generator}")).status_code == 404
            assert (await later.delete(f"{PATH}/{generator}")).json()["deleted"] is True
            assert (await later.delete(f"{PATH}/{generator}")).status_code == 404


async def test_key_that_is_limited_to_a_base_uses_what_it_trains(sqlite_url: str) -> None:
    async with tuning(sqlite_url) as (service, other, _tuner):
        key, _ = await service.new_key("acme", scopes=["inference", "fine-tune"], models=[MODEL])
        async with service.with_key(key) as client:
            own, foreign = await train(service, client), await train(service, other)
            assert (await client.post(f"{PATH}/{own}/generate", json={"length": 20})).status_code == 200
            assert (await client.post(f"{PATH}/{foreign}/generate", json={"length": 20})).status_code == 404


async def test_repeated_request_makes_one_generator(sqlite_url: str) -> None:
    async with tuning(sqlite_url) as (service, client, _tuner):
        headers = {"Idempotency-Key": "once"}
        body = {"name": "fox", "documents": DOCUMENTS}
        first, again = [await client.post(PATH, json=body, headers=headers) for _ in range(2)]
        assert first.json() == again.json()
        assert len(await service.services.fine_tuning.list("acme")) == 1
        assert len(await service.services.files.list("acme")) == 1
