"""What is the same on every route: bodies that are refused, keys, unknown paths and methods, ids, other origins."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import httpx
import pytest

from serve_app.config import HttpConfig
from tests.api.conftest import ClientFactory
from tests.fakes import KEY, FakeGenerator
from tests.loop_time import LoopTime

AITEXTGEN = "/v1/aitextgen/generate"
INFERKIT = "/v1/models/standard/generate"
PATHS = [AITEXTGEN, INFERKIT]

BAD_BODIES = {
    "empty": (b"", "empty"),
    "blank": (b" \n", "empty"),
    "cut off": (b'{"prompt": "x"', "line 1 column"),
    "no JSON": (b"prompt=x", "line 1 column 1"),
    "single quotes": (b"{'prompt': 'x'}", "line 1 column 2"),
    "comment": (b'{"prompt": "x" /* */}', "line 1 column 16"),
    "two values": (b'{"prompt": "x"} {}', "line 1 column 17"),
    "array": (b'[{"prompt": "x"}]', "not an array"),
    "string": (b'"x"', "not a string"),
    "number": (b"5", "not a number"),
    "boolean": (b"true", "not a boolean"),
    "null": (b"null", "not null"),
    "NaN": (b'{"temperature": NaN}', "NaN"),
    "Infinity": (b'{"temperature": Infinity}', "Infinity"),
    "minus Infinity": (b'{"temperature": -Infinity}', "-Infinity"),
    "float overflow": (b'{"temperature": 1e999}', "1e999"),
    "huge integer": (b'{"temperature": ' + b"9" * 10_000 + b"}", "64 bits"),
    "name twice": (b'{"prompt": "x", "prompt": "y"}', "prompt stands twice"),
    "lone surrogate": (b'{"prompt": "\\ud800"}', "surrogate"),
    "low surrogate alone": (b'{"prompt": "a\\uDC00b"}', "surrogate"),
    "surrogate in a name": (b'{"\\udfff": 1}', "surrogate"),
    "surrogates in the wrong order": (b'{"prompt": "\\udc00\\ud800"}', "surrogate"),
    "surrogate in UTF-8": (b'{"prompt": "\xed\xa0\x80"}', "UTF-8"),
    "Latin-1": (b'{"prompt": "\xe9"}', "UTF-8"),
    "byte order mark": (b'\xef\xbb\xbf{"prompt": "x"}', "byte order mark"),
    "UTF-16": ('{"prompt": "x"}'.encode("utf-16"), "byte order mark"),
    "raw line break in a string": (b'{"prompt": "a\nb"}', "line 1 column"),
    "deep arrays": (b'{"prompt": ' + b"[" * 100 + b"]" * 100 + b"}", "nested"),
    "very deep arrays": (b"[" * 500_000, "nested"),
    "deep objects": (b'{"a":' * 200 + b"1" + b"}" * 200, "nested"),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", BAD_BODIES)
async def test_body_that_is_no_json_object_is_400(make_client: ClientFactory, path: str, name: str) -> None:
    generator = FakeGenerator()
    client = await make_client(generator=generator)
    content, words = BAD_BODIES[name]
    response = await client.post(path, content=content)
    assert response.status_code == 400
    error = response.json()["error"]
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["code"] in ("invalid_request", "invalid_parameter")
    assert error["extensions"] == {"code": "BAD_USER_INPUT"}
    assert generator.requests == []


async def test_trailing_comma_is_refused_but_for_inferkit(make_client: ClientFactory) -> None:
    client = await make_client()
    assert (await client.post(AITEXTGEN, content=b'{"prompt": "x",}')).status_code == 400
    assert (await client.post(INFERKIT, content=b'{"length": 10,}')).status_code == 200


async def test_surrogate_pairs_and_escaped_backslashes_are_fine(make_client: ClientFactory) -> None:
    client = await make_client()
    content = b'{"prompt": "\\ud83e\\udd14 \\\\ud800 \\u0000", "return_full_text": true}'
    response = await client.post(AITEXTGEN, content=content)
    assert response.status_code == 200
    assert response.json()["generated_text"].startswith("🤔 \\ud800 \0")


@pytest.mark.parametrize("path", PATHS)
async def test_body_over_the_limit_is_413(make_client: ClientFactory, path: str) -> None:
    client = await make_client(http=HttpConfig(max_body_bytes=100))
    response = await client.post(path, content=b'{"prompt": "' + b"x" * 100 + b'"}')
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "payload_too_large"
    assert response.json()["error"]["extensions"] == {"code": "PAYLOAD_TOO_LARGE"}


async def test_limit_counts_what_is_read_not_what_is_announced(make_client: ClientFactory) -> None:
    num_pieces = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal num_pieces
        while True:
            num_pieces += 1
            yield b"x" * 50

    client = await make_client(http=HttpConfig(max_body_bytes=100))
    response = await client.post(AITEXTGEN, content=endless())
    assert response.status_code == 413
    assert num_pieces <= 4


@pytest.mark.parametrize(
    "authorization", [None, "", KEY, "Bearer", "Bearer ", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY} more", "é"]
)
async def test_key_that_is_missing_malformed_or_unknown_is_401(
    make_client: ClientFactory, authorization: str | None
) -> None:
    client = await make_client(key=None)
    headers = {b"Authorization": authorization.encode()} if authorization is not None else {}
    response = await client.post(AITEXTGEN, content=b"{", headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    error = response.json()["error"]
    assert error["type"] == "authentication_error"
    assert error["code"] == "unauthenticated"
    assert error["extensions"] == {"code": "UNAUTHENTICATED"}
    assert KEY not in error["message"]


async def test_401_comes_before_404_before_400(make_client: ClientFactory) -> None:
    path = "/v1/models/nope/generate"
    assert (await (await make_client(key=None)).post(path, content=b"{")).status_code == 401
    assert (await (await make_client()).post(path, content=b"{")).status_code == 404
    assert (await (await make_client()).post(INFERKIT, content=b"{")).status_code == 400


@pytest.mark.parametrize("path", ["/", "/nope", "/v1/aitextgen", "/v1/aitextgen/generate/", "/v1"])
async def test_unknown_path_is_404_in_the_unified_shape(make_client: ClientFactory, path: str) -> None:
    response = await (await make_client()).get(path)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"
    assert response.json()["error"]["extensions"] == {"code": "NOT_FOUND"}


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", AITEXTGEN, "POST"),
        ("DELETE", AITEXTGEN, "POST"),
        ("PUT", INFERKIT, "GET, POST"),
        ("POST", "/health", "GET, HEAD"),
        ("POST", "/openapi.json", "GET"),
    ],
)
async def test_wrong_method_is_405_with_allow(make_client: ClientFactory, method: str, path: str, allow: str) -> None:
    response = await (await make_client()).request(method, path)
    assert response.status_code == 405
    assert set(allow.split(", ")) <= set(response.headers["allow"].split(", "))
    assert response.json()["error"]["code"] == "method_not_allowed"
    assert response.json()["error"]["extensions"] == {"code": "METHOD_NOT_ALLOWED"}


async def test_unknown_exception_is_a_generic_500_and_says_nothing(
    make_client: ClientFactory, caplog: pytest.LogCaptureFixture
) -> None:
    client = await make_client(generator=FakeGenerator(error=ValueError("secret prompt text")))
    with caplog.at_level(logging.DEBUG):
        response = await client.post(AITEXTGEN, json={"prompt": "x"}, headers={"X-Request-Id": "abc-1"})
    assert response.status_code == 500
    error = response.json()["error"]
    assert "abc-1" in error["message"]
    assert error["extensions"] == {"code": "INTERNAL_SERVER_ERROR"}
    assert "secret" not in response.text
    logged = "\n".join(record.getMessage() for record in caplog.records)
    assert "ValueError" in logged
    assert "abc-1" in logged
    assert "secret" not in caplog.text


_DEADLINE = HttpConfig(request_deadline_s=600, stream_keep_alive_s=600)


async def _past_the_deadline(
    posting: Coroutine[Any, Any, httpx.Response], generator: FakeGenerator, time: LoopTime
) -> httpx.Response:
    """The answer to a request whose deadline passes while its generator hangs."""
    answer = asyncio.create_task(posting)
    await generator.hanging.wait()
    generator.hanging.clear()
    time.move_on(_DEADLINE.request_deadline_s)
    return await answer


async def test_deadline_is_504(make_client: ClientFactory) -> None:
    generator, time = FakeGenerator(hang=True, texts=[()]), LoopTime()
    client = await make_client(generator=generator, http=_DEADLINE)
    for path, body in ((AITEXTGEN, {"prompt": "x"}), (INFERKIT, {"length": 10, "streamResponse": True})):
        response = await _past_the_deadline(client.post(path, json=body), generator, time)
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "deadline_exceeded"
    assert generator.num_cancelled == 2


async def test_deadline_in_a_started_stream_is_its_last_line(make_client: ClientFactory) -> None:
    generator, time = FakeGenerator("a", hang=True), LoopTime()
    client = await make_client(generator=generator, http=_DEADLINE)
    posting = client.post(INFERKIT, json={"length": 10, "streamResponse": True})
    response = await _past_the_deadline(posting, generator, time)
    assert response.status_code == 200
    assert json.loads(response.text.splitlines()[-1])["error"]["code"] == "deadline_exceeded"
    assert generator.num_cancelled == 1


@pytest.mark.parametrize("given", ["abc", "A-1_b.c:d"])
async def test_sane_request_id_is_answered_back(make_client: ClientFactory, given: str) -> None:
    response = await (await make_client()).get("/health", headers={"X-Request-Id": given})
    assert response.headers["x-request-id"] == given


@pytest.mark.parametrize("given", [None, "", "with blank", "x" * 101, "a\tb", '"'])
async def test_other_request_id_is_replaced(make_client: ClientFactory, given: str | None) -> None:
    response = await (await make_client()).get("/health", headers={"X-Request-Id": given} if given is not None else {})
    assert response.headers["x-request-id"] not in (given, "")


async def test_two_requests_of_one_id_are_different_work(make_client: ClientFactory) -> None:
    generator = FakeGenerator()
    client = await make_client(generator=generator)
    for _ in range(2):
        await client.post(AITEXTGEN, json={"prompt": "x"}, headers={"X-Request-Id": "same"})
    first, second = generator.requests
    assert first.request_id != second.request_id
    assert first.request_id.startswith("same")


@pytest.mark.parametrize("path", [AITEXTGEN, INFERKIT, "/v1/completions"])
async def test_preflight_needs_no_key_and_allows_what_is_asked(make_client: ClientFactory, path: str) -> None:
    client = await make_client(key=None)
    headers = {
        "Origin": "https://example.org",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, x-stainless-lang",
    }
    response = await client.options(path, headers=headers)
    assert response.status_code == 204
    assert response.headers["access-control-allow-origin"] == "*"
    assert "POST" in response.headers["access-control-allow-methods"]
    allowed = response.headers["access-control-allow-headers"].split(", ")
    assert {"authorization", "content-type", "x-stainless-lang"} <= set(allowed)
    assert "access-control-allow-credentials" not in response.headers


async def test_any_origin_may_read_answers_and_errors(make_client: ClientFactory) -> None:
    client = await make_client()
    responses: list[httpx.Response] = [
        await client.post(AITEXTGEN, json={"prompt": "x"}),
        await client.post(AITEXTGEN, json={}),
        await client.get("/nope"),
    ]
    assert [response.headers["access-control-allow-origin"] for response in responses] == ["*"] * 3


async def test_probes_need_no_key(make_client: ClientFactory) -> None:
    client = await make_client(key=None)
    assert (await client.get("/health")).json() == {"status": "ok"}
    assert (await client.get("/ready")).json() == {"status": "ready"}
    assert (await client.head("/health")).status_code == 200
    unready = await make_client(key=None, is_ready=False)
    assert (await unready.get("/health")).status_code == 200
    assert (await unready.get("/ready")).status_code == 503
