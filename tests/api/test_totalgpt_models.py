"""The list of models of the TotalGPT API, and one model, also as InferKit's clients read it."""

import pytest

from tests.api.conftest import MODEL, OTHER_MODEL, ClientFactory
from tests.fakes import FakeTokenizer


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
async def test_ids_and_aliases_are_listed(make_client: ClientFactory, path: str) -> None:
    client = await make_client()
    answer = (await client.get(path)).json()
    assert answer["object"] == "list"
    assert [model["id"] for model in answer["data"]] == [MODEL, "standard", "test-model", OTHER_MODEL]
    assert [model["root"] for model in answer["data"]] == [MODEL, MODEL, MODEL, OTHER_MODEL]


@pytest.mark.parametrize("name", [MODEL, "test-org%2Ftest-model", "standard"])
async def test_model_has_the_fields_of_all_clients(make_client: ClientFactory, name: str) -> None:
    client = await make_client(tokenizer=FakeTokenizer(context_length=123))
    response = await client.get(f"/v1/models/{name}")
    assert response.status_code == 200
    name = name.replace("%2F", "/")
    assert response.json() == {
        "id": name,
        "object": "model",
        "created": 1677610602,
        "owned_by": "tritext",
        "root": MODEL,
        "parent": None,
        "max_model_len": 123,
        "permission": [],
        "name": name,
        "deploymentStage": "Deployed",
        "undeployAt": None,
    }


async def test_every_listed_name_can_be_used(make_client: ClientFactory) -> None:
    client = await make_client()
    for model in (await client.get("/v1/models")).json()["data"]:
        assert (await client.get(f"/v1/models/{model['id']}")).json() == model
        response = await client.post("/v1/completions", json={"model": model["id"], "prompt": "x"})
        assert response.status_code == 200


async def test_unknown_model(make_client: ClientFactory) -> None:
    client = await make_client()
    response = await client.get("/v1/models/nobody/knows-it")
    assert response.status_code == 404
    error = response.json()["error"]
    assert (error["code"], error["param"], error["type"]) == ("model_not_found", "model", "invalid_request_error")
    assert error["extensions"] == {"code": "NOT_FOUND"}


@pytest.mark.parametrize("path", ["/v1/models", f"/v1/models/{MODEL}", "/v1/models/nobody"])
async def test_key_is_required(make_client: ClientFactory, path: str) -> None:
    client = await make_client(key=None)
    response = await client.get(path)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/v1/models", "GET, POST"),
        ("PUT", "/v1/models/standard", "DELETE, GET"),
        ("GET", "/v1/completions", "POST"),
        ("GET", "/v1/chat/completions", "POST"),
        ("GET", "/v1/test-org/test-model/completions", "POST"),
        ("GET", "/utils/token_counter", "POST"),
        ("PUT", "/tokenize", "POST"),
    ],
)
async def test_wrong_method(make_client: ClientFactory, method: str, path: str, allow: str) -> None:
    client = await make_client()
    response = await client.request(method, path)
    assert response.status_code == 405
    assert response.headers["allow"] == allow
