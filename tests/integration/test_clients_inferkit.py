"""InferKit and AITextGen as their clients call them: the standard library, whatever content type it puts."""

import http.client
import json
import urllib.error
import urllib.request
from typing import Any

import pytest

from tests.integration.service import Service

pytestmark = pytest.mark.timeout(400)

KOBOLD_PROMPT = "You are standing in an open field west of a white house. Café 🏠.\n> open the mailbox\n"


def call(
    service: Service, path: str, body: Any = None, *, key: str | None = None, content_type: str = ""
) -> http.client.HTTPResponse:
    """As `urllib` does it: with a body it posts, and if the caller does not say what that is, it says a form."""
    headers = {"Authorization": f"Bearer {service.key if key is None else key}"}
    if content_type:
        headers["Content-Type"] = content_type
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(service.url + path, data, headers)  # noqa: S310
    answer = urllib.request.urlopen(request, timeout=120)  # noqa: S310
    assert isinstance(answer, http.client.HTTPResponse)
    return answer


def post(service: Service, path: str, body: Any, **options: Any) -> Any:
    with call(service, path, body, **options) as answer:
        return json.load(answer)


def error(service: Service, path: str, body: Any, **options: Any) -> tuple[int, Any]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        call(service, path, body, **options)
    with caught.value as answer:
        return answer.code, json.load(answer)


def kobold_request(**fields: Any) -> dict[str, Any]:
    """What KoboldAI sends, always all of it."""
    return {
        "prompt": {"text": KOBOLD_PROMPT, "isContinuation": False},
        "length": 60,
        "temperature": 0.9,
        "topP": 0.9,
        "startFromBeginning": False,
        "streamResponse": False,
        "forceNoEnd": True,
    } | fields


@pytest.mark.parametrize("content_type", ["", "json", "text/plain;charset=UTF-8", "application/json;charset=UTF-8"])
def test_a_kobold_client_reads_its_text_under_data(service: Service, content_type: str) -> None:
    answer = post(service, "/v1/models/standard/generate", kobold_request(), content_type=content_type)
    assert 0 < len(answer["data"]["text"]) <= 60
    assert answer["data"]["isFinalChunk"] is True
    assert answer["data"]["reachedEnd"] is False  # it forced no end
    assert answer.items() >= answer["data"].items()  # where the documentation has it


def test_a_kobold_client_reads_the_code_of_an_error(service: Service) -> None:
    path = "/v1/models/standard/generate"
    status, body = error(service, path, kobold_request(), key="00000000-0000-0000-0000-000000000000")
    assert (status, body["error"]["extensions"]["code"]) == (401, "UNAUTHENTICATED")
    status, body = error(service, path, kobold_request(length=3000))  # its slider goes so far
    assert (status, body["error"]["extensions"]["code"]) == (400, "BAD_USER_INPUT")
    assert "length" in body["error"]["message"]
    status, body = error(service, "/v1/models/absent/generate", kobold_request())
    assert (status, body["error"]["extensions"]["code"]) == (404, "NOT_FOUND")


def test_a_streaming_client_joins_lines_until_the_final_one(service: Service) -> None:
    body = kobold_request(streamResponse=True)
    with call(service, "/v1/models/standard/generate", body) as answer:
        chunks = [json.loads(line)["data"] for line in answer]
    *pieces, final = chunks
    assert 0 < sum(len(piece["text"]) for piece in pieces) <= 60
    assert all(piece["text"] and not piece["isFinalChunk"] and "reachedEnd" not in piece for piece in pieces)
    assert final == {"text": "", "isFinalChunk": True, "reachedEnd": False}


def test_the_documented_way_to_unlimited_length(service: Service) -> None:
    """Prompt and output become the next prompt; beyond 3000 code points the last 3000, as a continuation."""
    text = "🏠 She told them what had happened to the old house by the river, and nobody said a word. " * 31
    assert 2700 < len(text) < 2850  # so that a few short requests pass the limit
    num_whole = num_continued = 0
    while num_continued < 2:
        is_continuation = len(text) > 3000
        prompt = {"text": text[-3000:], "isContinuation": is_continuation}
        body = {"prompt": prompt, "length": 120, "forceNoEnd": True, "topP": 0.8}
        answer = post(service, "/v1/models/standard/generate", body)
        generated = answer["data"]["text"]
        assert 0 < len(generated) <= 120
        text += generated
        num_continued += is_continuation
        num_whole += not is_continuation
    assert num_whole >= 2
    assert len(text) > 3000


def test_one_code_point_more_than_the_limit_is_refused(service: Service) -> None:
    path = "/v1/models/standard/generate"
    status, body = error(service, path, {"prompt": {"text": "🤔" * 3001}, "length": 10})
    assert (status, body["error"]["param"]) == (400, "prompt.text")


def test_the_generator_can_be_looked_up(service: Service) -> None:
    with call(service, "/v1/models/standard") as answer:
        generator = json.load(answer)
    assert (generator["id"], generator["deploymentStage"], generator["undeployAt"]) == ("standard", "Deployed", None)


def test_an_aitextgen_client_gets_the_three_documented_fields(service: Service) -> None:
    body = {"prompt": "Once upon a time", "max_length": 12, "temperature": 0.8}
    answer = post(service, "/v1/aitextgen/generate", body, content_type="application/json")
    assert answer.keys() == {"generated_text", "tokens_generated", "generation_time"}
    assert answer["generated_text"]
    assert 0 < answer["tokens_generated"] <= 12
    assert answer["generation_time"] > 0


def test_an_aitextgen_client_is_told_what_is_wrong(service: Service) -> None:
    path, json_type = "/v1/aitextgen/generate", "application/json"
    status, body = error(service, path, {"prompt": "Hi"}, key="no-key", content_type=json_type)
    assert (status, body["error"]["type"]) == (401, "authentication_error")
    status, body = error(service, path, {"prompt": "Hi", "temperature": 1.5}, content_type=json_type)
    assert (status, body["error"]["param"]) == (400, "temperature")
