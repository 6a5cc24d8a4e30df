"""Fine-tuned models by their ids, wherever a model can be named: on all three APIs, in lists, in counters."""

from typing import Any

import pytest

from deployments.types import AdapterRef
from serve_app.jobs.job import TunedModel
from serve_app.use_cases.tuned_models import ComingModel
from tests.api.conftest import MODEL, OTHER_MODEL, ClientFactory, make_services
from tests.fakes import KEY, FakeAdmissionStore, FakeGenerator, FakeTunedModels

ACCOUNT = f"account-of-{KEY}"
TUNED = TunedModel("ft_model_1", ACCOUNT, "key-1", OTHER_MODEL, "ftjob-1", "mine", "d" * 64, 1000, 1790000000.5)

GENERATING: list[tuple[str, dict[str, Any]]] = [
    ("/v1/aitextgen/generate", {"prompt": "x", "model": "ft_model_1"}),
    ("/v1/models/ft_model_1/generate", {"prompt": {"text": "x"}, "length": 20}),
    ("/v1/models/ft_model_1/generate", {"length": 20, "streamResponse": True}),
    ("/v1/completions", {"model": "ft_model_1", "prompt": "x"}),
    ("/v1/completions", {"model": "ft_model_1", "prompt": "x", "stream": True}),
    ("/v1/ft_model_1/completions", {"prompt": "x"}),
    ("/v1/chat/completions", {"model": "ft_model_1", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5}),
]


@pytest.mark.parametrize(("path", "body"), GENERATING)
async def test_it_generates_with_its_adapter_on_its_base(
    make_client: ClientFactory, path: str, body: dict[str, Any]
) -> None:
    generator, ledger = FakeGenerator(), FakeAdmissionStore()
    client = await make_client(other_generator=generator, tuned=FakeTunedModels(TUNED), admission_store=ledger)
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    assert generator.request.model == OTHER_MODEL
    assert generator.request.adapter == AdapterRef("ft_model_1", "d" * 64)
    assert ledger.settlement.line.model == "ft_model_1"


@pytest.mark.parametrize(("path", "body"), GENERATING)
async def test_it_generates_nothing_while_it_is_not_deployed(
    make_client: ClientFactory, path: str, body: dict[str, Any]
) -> None:
    store = FakeTunedModels(TUNED)
    await store.set_deployed(ACCOUNT, "ft_model_1", deployed=False, undeploy_at=None)
    client = await make_client(tuned=store)
    response = await client.post(path, json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("generator_not_deployed", "model")
    assert error["extensions"] == {"code": "GENERATOR_NOT_DEPLOYED"}


@pytest.mark.parametrize(("path", "body"), GENERATING)
async def test_it_does_not_exist_for_another_account(
    make_client: ClientFactory, path: str, body: dict[str, Any]
) -> None:
    foreign = FakeTunedModels(
        TunedModel("ft_model_1", "another", "key-2", MODEL, "ftjob-1", "theirs", "d" * 64, 1, 1.0)
    )
    client = await make_client(tuned=foreign)
    response = await client.post(path, json=body)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


async def test_it_is_listed_after_the_configured_models(make_client: ClientFactory) -> None:
    client = await make_client(tuned=FakeTunedModels(TUNED))
    listed = (await client.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == [MODEL, "standard", "test-model", OTHER_MODEL, "ft_model_1"]
    assert listed[-1] == (await client.get("/v1/models/ft_model_1")).json()
    assert listed[-1] == {
        "id": "ft_model_1",
        "object": "model",
        "created": 1790000000,
        "owned_by": ACCOUNT,
        "root": OTHER_MODEL,
        "parent": OTHER_MODEL,
        "max_model_len": 8192,
        "permission": [],
        "name": "mine",
        "deploymentStage": "Deployed",
        "undeployAt": None,
    }


async def test_stage_tells_whether_it_can_be_used(make_client: ClientFactory) -> None:
    store = FakeTunedModels(TUNED, coming=[ComingModel("ft_model_2", "key-1", MODEL, "", 7.0)])
    client = await make_client(tuned=store)

    async def stage(model: str) -> tuple[str, str | None]:
        shown = (await client.get(f"/v1/models/{model}")).json()
        return shown["deploymentStage"], shown["undeployAt"]

    await store.set_deployed(ACCOUNT, "ft_model_1", deployed=True, undeploy_at=32503680000.0)
    assert await stage("ft_model_1") == ("Deployed", "3000-01-01T00:00:00Z")
    await store.set_deployed(ACCOUNT, "ft_model_1", deployed=True, undeploy_at=1.0)
    assert await stage("ft_model_1") == ("Undeployed", None)
    await store.set_deployed(ACCOUNT, "ft_model_1", deployed=False, undeploy_at=None)
    assert await stage("ft_model_1") == ("Undeployed", None)
    assert await stage("ft_model_2") == ("Deploying", None)
    listed = (await client.get("/v1/models")).json()["data"]
    assert [model["deploymentStage"] for model in listed if model["id"].startswith("ft_")] == ["Undeployed"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/utils/token_counter", {"model": "ft_model_1", "prompt": "abc"}),
        ("/tokenize", {"model": "ft_model_1", "prompt": "abc"}),
        ("/detokenize", {"model": "ft_model_1", "tokens": [97]}),
    ],
)
async def test_its_tokens_are_counted(make_client: ClientFactory, path: str, body: dict[str, Any]) -> None:
    client = await make_client(tuned=FakeTunedModels(TUNED))
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    if path.endswith("counter"):
        assert response.json()["model_used"] == "Tritext/ft_model_1"
        assert response.json()["total_tokens"] == 3


async def test_another_adapter_is_another_fingerprint(make_client: ClientFactory) -> None:
    store = FakeTunedModels(
        TUNED, TunedModel("ft_model_2", ACCOUNT, "key-1", OTHER_MODEL, "ftjob-2", "", "e" * 64, 1000, 1790000000.5)
    )
    client = await make_client(tuned=store)

    async def fingerprint(model: str) -> str:
        response = await client.post("/v1/completions", json={"model": model, "prompt": "x"})
        return str(response.json()["system_fingerprint"])

    seen = {await fingerprint(name) for name in (OTHER_MODEL, "ft_model_1", "ft_model_2")}
    assert len(seen) == 3
    assert await fingerprint("ft_model_1") == await fingerprint("ft_model_1")


async def test_key_without_the_scope_deletes_nothing(make_client: ClientFactory) -> None:
    store = FakeTunedModels(TUNED)
    client = await make_client(services=make_services(tuned=store))
    response = await client.delete("/v1/models/ft_model_1")
    assert response.status_code == 403
    assert store.models
