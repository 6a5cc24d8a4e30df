"""The OpenAPI document and the reference pages made of it."""

from html.parser import HTMLParser
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from serve_app.config import InferKitConfig
from tests.api.conftest import MODEL, ClientFactory


@pytest.fixture
async def document(make_client: ClientFactory) -> dict[str, Any]:
    response = await (await make_client(key=None)).get("/openapi.json")
    assert response.status_code == 200
    result: dict[str, Any] = response.json()
    return result


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


async def test_the_three_dialects_and_the_probes_are_described(document: dict[str, Any]) -> None:
    described = {(method, path) for path, method, _ in operations(document)}
    assert {
        ("post", "/v1/aitextgen/generate"),
        ("post", "/v1/models/{id}/generate"),
        ("post", "/v1/completions"),
        ("get", "/health"),
        ("get", "/ready"),
    } <= described
    assert len({operation["operationId"] for _, _, operation in operations(document)}) == len(described)


async def test_422_is_promised_for_misused_idempotency_keys_only(document: dict[str, Any]) -> None:
    for path, _, operation in operations(document):
        names = [parameter["name"] for parameter in operation.get("parameters", [])]
        assert ("422" in operation["responses"]) is ("Idempotency-Key" in names), path
    assert set(document["components"]["schemas"]) == {"Error"}


async def test_every_post_has_a_schema_and_examples_that_satisfy_it(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        if method == "post":
            assert {"200", "201"} & set(operation["responses"]), path
            assert {"400", "401", "403", "404", "429", "503"} <= set(operation["responses"]), path
        for content in operation.get("requestBody", {}).get("content", {}).values():
            assert content["examples"], path
            for example in content["examples"].values():
                jsonschema.validate(example["value"], content["schema"])
            assert "413" in operation["responses"], path


@pytest.mark.parametrize("envelope", ["both", "bare", "data"])
async def test_inferkit_answers_are_as_described(make_client: ClientFactory, envelope: Any) -> None:
    client = await make_client(inferkit=InferKitConfig(envelope=envelope))
    described = (await client.get("/openapi.json")).json()["paths"]["/v1/models/{id}/generate"]["post"]["responses"]
    content = described["200"]["content"]["application/json"]
    answer = (await client.post("/v1/models/standard/generate", json={"length": 10})).json()
    for value in (answer, content["examples"]["documented"]["value"]):
        jsonschema.validate(value, content["schema"])


async def test_keys_are_asked_for_but_by_the_probes(document: dict[str, Any]) -> None:
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    assert document["security"] == [{"bearer": []}]
    open_paths = {path for path, _, operation in operations(document) if operation.get("security") == []}
    assert open_paths == {"/health", "/ready"}


async def test_path_parameters_are_described(document: dict[str, Any]) -> None:
    for path, _, operation in operations(document):
        names = [parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "path"]
        assert all(f"{{{name}}}" in path for name in names)
        assert len(names) == path.count("{"), path


async def test_examples_of_the_document_are_answered(make_client: ClientFactory, document: dict[str, Any]) -> None:
    client = await make_client()
    for path in ("/v1/aitextgen/generate", "/v1/models/{id}/generate"):
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        for example in content["examples"].values():
            response = await client.post(path.replace("{id}", MODEL), json=example["value"])
            assert response.status_code == 200


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: set[str | None] = set()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        self.ids.add(attributes.get("id"))
        for name in ("href", "src"):
            if value := attributes.get(name):
                self.targets.append(value)


async def test_reference_page_needs_nothing_but_its_own_files(make_client: ClientFactory) -> None:
    client = await make_client(key=None)
    response = await client.get("/docs")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "unsafe-inline" not in response.headers["content-security-policy"]
    page = _Page()
    page.feed(response.text)
    assert not any(tag in ("script", "style") or "style" in attributes for tag, attributes in page.tags)
    for target in page.targets:
        if target.startswith("#"):
            assert target[1:] in page.ids
        else:
            assert target.startswith("/")
            assert (await client.get(target)).status_code == 200


async def test_reference_page_shows_each_operation_with_its_example(make_client: ClientFactory) -> None:
    text = (await (await make_client()).get("/docs")).text
    assert "curl -X POST http://test/v1/aitextgen/generate" in text
    assert "-F file=@data.jsonl" in text and "-F purpose=fine-tune" in text
    assert f"curl -X POST http://test/v1/models/{MODEL}/generate" in text
    assert "<code>prompt.isContinuation</code>" in text
    assert "integer, 10 to 1000" in text
