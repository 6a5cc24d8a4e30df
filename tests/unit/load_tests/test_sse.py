"""Times and counts read from a stream of completions."""

import json

import pytest

from load_tests.sse import StreamFailed, StreamTimer


def _chunk(text: str = "", **more: object) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "text": text}]} | more).encode() + b"\n"


def test_the_first_and_last_chunk_with_text_count() -> None:
    timer = StreamTimer()
    timer.line(_chunk(""), 0.1)
    timer.line(_chunk("one"), 0.2)
    timer.line(b"\n", 0.25)
    timer.line(_chunk("two"), 0.3)
    timer.line(_chunk("", usage={"completion_tokens": 7}), 0.4)
    timer.line(b"data: [DONE]\n", 0.5)
    assert (timer.first(), timer.last_s, timer.num_tokens) == (0.2, 0.3, 7)


def test_usage_may_come_without_choices_and_null_before() -> None:
    timer = StreamTimer()
    timer.line(_chunk("x", usage=None), 0.0)
    timer.line(b'data: {"choices": [], "usage": {"completion_tokens": 3}}\n', 1.0)
    assert (timer.first(), timer.num_tokens) == (0.0, 3)


def test_lines_without_a_blank_and_comments_are_read() -> None:
    timer = StreamTimer()
    timer.line(b": a comment\n", 0.0)
    timer.line(b"event: message\n", 0.0)
    timer.line(b'data:{"choices":[{"text":"x"}],"usage":{"completion_tokens":1}}\r\n', 1.0)
    assert timer.first() == 1.0


def test_an_error_event_fails_the_request() -> None:
    with pytest.raises(StreamFailed, match="too much"):
        StreamTimer().line(b'data: {"error": {"message": "too much"}}\n', 0.1)


def test_a_stream_without_text_fails() -> None:
    timer = StreamTimer()
    timer.line(_chunk("", usage={"completion_tokens": 1}), 0.1)
    with pytest.raises(StreamFailed, match="without any text"):
        timer.first()


def test_a_stream_without_usage_fails() -> None:
    timer = StreamTimer()
    timer.line(_chunk("x"), 0.1)
    with pytest.raises(StreamFailed, match="without its usage"):
        timer.first()
