"""What stands on the wire, seen on a raw socket: chunks, flushing, and clients that go away."""

import json

import pytest

from serve_app.api import create_api
from tests.api.conftest import make_services
from tests.fakes import FakeGenerator
from tests.live_server import RawClient, serve

INFERKIT = "/v1/models/standard/generate"
AITEXTGEN = "/v1/aitextgen/generate"
STREAM = b'{"prompt": {"text": "Hello"}, "length": 100, "streamResponse": true}'


async def test_each_line_of_inferkit_is_one_http_chunk() -> None:
    generator = FakeGenerator(" é", "🤔", "\nnext", " line")
    api = create_api(make_services(generator=generator))
    async with serve(api) as port, RawClient.connect(port) as client:
        await client.post(INFERKIT, STREAM)
        status, headers = await client.read_head()
        assert status == 200
        assert headers["transfer-encoding"] == "chunked"
        assert "content-length" not in headers
        chunks = await client.read_body_chunks()
    for chunk in chunks:
        assert chunk.endswith(b"\n")
        assert chunk.count(b"\n") == 1
    pieces = [json.loads(chunk) for chunk in chunks]
    assert [piece["data"]["text"] for piece in pieces] == [" é", "🤔", "\nnext", " line", ""]
    assert [piece["isFinalChunk"] for piece in pieces] == [False] * 4 + [True]


async def test_text_is_sent_while_more_is_to_come() -> None:
    generator = FakeGenerator("first", hang=True)
    api = create_api(make_services(generator=generator))
    async with serve(api) as port, RawClient.connect(port) as client:
        await client.post(INFERKIT, STREAM)
        await client.read_head()
        assert json.loads(await client.read_chunk())["text"] == "first"
        assert not generator.closed.is_set()


async def test_answer_that_is_not_streamed_has_a_length() -> None:
    api = create_api(make_services())
    async with serve(api) as port, RawClient.connect(port) as client:
        await client.post(INFERKIT, b'{"length": 100}', content_type="text/plain")
        status, headers = await client.read_head()
        assert status == 200
        assert int(headers["content-length"]) > 0
        assert "transfer-encoding" not in headers


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (AITEXTGEN, b'{"prompt": "x"}'),
        (INFERKIT, b'{"length": 100}'),
        (INFERKIT, STREAM),
    ],
    ids=["aitextgen", "inferkit", "inferkit-stream"],
)
async def test_client_that_leaves_before_the_answer_ends_the_work(path: str, body: bytes) -> None:
    generator = FakeGenerator(texts=[()], hang=True)
    api = create_api(make_services(generator=generator))
    async with serve(api) as port:
        async with RawClient.connect(port) as client:
            await client.post(path, body)
            await generator.started.wait()
            assert not generator.closed.is_set()
        await generator.closed.wait()
    assert generator.num_cancelled == 1


async def test_client_that_leaves_in_the_middle_of_a_stream_ends_the_work() -> None:
    generator = FakeGenerator("first", hang=True)
    api = create_api(make_services(generator=generator))
    async with serve(api) as port:
        async with RawClient.connect(port) as client:
            await client.post(INFERKIT, STREAM)
            await client.read_head()
            await client.read_chunk()
        await generator.closed.wait()
    assert generator.num_cancelled == 1


async def test_connection_is_kept_for_the_next_request() -> None:
    api = create_api(make_services())
    async with serve(api) as port, RawClient.connect(port) as client:
        for _ in range(3):
            await client.post(INFERKIT, STREAM)
            status, _ = await client.read_head()
            assert status == 200
            assert len(await client.read_body_chunks()) > 1


async def test_body_over_the_limit_is_answered_without_being_read_whole() -> None:
    api = create_api(make_services())
    async with serve(api) as port, RawClient.connect(port) as client:
        await client.post(AITEXTGEN, b"x" * 2_000_000)
        status, _ = await client.read_head()
        assert status == 413
