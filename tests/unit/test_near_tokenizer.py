"""Which texts are handled where the caller is, and which go to the Tokenizer."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from deployments.config import GraphConfig, ModelConfig
from deployments.graph import Tokenizer
from deployments.near_tokenizer import MAX_SIZE, NearTokenizer, nearest
from deployments.types import ChatMessage, ChatPrompt, EncodeRequest, TextPrompt, TokenPrompt
from tests.factories import make_tiny_model
from tests.fakes import FakeTokenizer


class Named(FakeTokenizer):
    """calls: what was asked of it, beside encoding."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    async def decode(self, model: str, token_ids: tuple[int, ...], *, skip_special_tokens: bool = False) -> str:
        self.calls.append("decode")
        return await super().decode(model, token_ids, skip_special_tokens=skip_special_tokens)

    async def token_texts(self, model: str, token_ids: tuple[int, ...]) -> tuple[str, ...]:
        self.calls.append("token_texts")
        return await super().token_texts(model, token_ids)

    async def count(self, model: str, texts: tuple[str, ...]) -> tuple[int, ...]:
        self.calls.append("count")
        return await super().count(model, texts)


def texts(size: int) -> EncodeRequest:
    return EncodeRequest("m", (TextPrompt("x" * (size // 2)), TextPrompt("x" * (size - size // 2))))


def tokens(size: int) -> EncodeRequest:
    return EncodeRequest("m", (TokenPrompt((5,) * size),))


def messages(size: int) -> EncodeRequest:
    return EncodeRequest("m", (ChatPrompt((ChatMessage("user", "x" * size), ChatMessage("user", "x"))),))


def empty_messages(size: int) -> EncodeRequest:
    return EncodeRequest("m", (ChatPrompt((ChatMessage("user", ""),) * size),))


def bad_words(size: int) -> EncodeRequest:
    return EncodeRequest("m", (TextPrompt("x"),), ("x",) * size)


@pytest.mark.parametrize(
    ("make", "most"), [(texts, 2000), (tokens, 2000), (messages, 2000), (empty_messages, 30), (bad_words, 10)]
)
async def test_prompts_are_encoded_here_while_all_together_are_little_work(
    make: Callable[[int], EncodeRequest], most: int
) -> None:
    near, far = Named(), Named()
    tokenizer: Tokenizer = NearTokenizer(near, far)
    await tokenizer.encode(make(most // 2))
    assert len(near.requests) == 1
    await tokenizer.encode(make(most + most // 10))
    assert len(far.requests) == 1


async def test_so_is_everything_else() -> None:
    near, far = Named(), Named()
    tokenizer: Tokenizer = NearTokenizer(near, far)
    for size in (MAX_SIZE // 2, MAX_SIZE + 1):
        await tokenizer.decode("m", (5,) * size)
        await tokenizer.token_texts("m", (5,) * size)
        await tokenizer.count("m", ("x", "x" * size))
    assert near.calls == far.calls == ["decode", "token_texts", "count"]


async def test_where_the_model_s_files_are_its_tokenizer_is_used(tmp_path: Path) -> None:
    config = GraphConfig(models=(ModelConfig(id="tiny", source=str(make_tiny_model(tmp_path))),))
    far = Named()
    tokenizer = await nearest(config, far)
    ids = (await tokenizer.encode(EncodeRequest("tiny", (TextPrompt("the sea"),)))).prompt_token_ids[0]
    assert await tokenizer.decode("tiny", ids) == "the sea"
    assert far.requests == far.calls == []


async def test_where_they_are_not_all_goes_to_the_tokenizer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    far = Named()
    assert await nearest(GraphConfig(models=(ModelConfig(id="tiny", source=str(tmp_path / "absent")),)), far) is far
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
