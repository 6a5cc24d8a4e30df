"""Which texts are handled where the caller is, and which go to the Tokenizer."""

import logging
from pathlib import Path

import pytest

from deployments.config import GraphConfig, ModelConfig
from deployments.graph import Tokenizer
from deployments.near_tokenizer import MAX_SIZE, NearTokenizer, nearest
from deployments.types import ChatMessage, ChatPrompt, EncodeRequest, Prompt, TextPrompt, TokenPrompt
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


HALF = "x" * (MAX_SIZE // 2)


@pytest.mark.parametrize(
    ("prompts", "bad_words"),
    [
        ((TextPrompt(HALF), TextPrompt(HALF)), ()),
        ((TokenPrompt((5,) * MAX_SIZE),), ()),
        ((ChatPrompt((ChatMessage("user", HALF), ChatMessage("user", HALF))),), ()),
        ((TextPrompt(HALF),), (HALF,)),
    ],
)
async def test_prompts_are_encoded_here_up_to_a_size_of_all_together(
    prompts: tuple[Prompt, ...], bad_words: tuple[str, ...]
) -> None:
    near, far = Named(), Named()
    tokenizer: Tokenizer = NearTokenizer(near, far)
    short, long = EncodeRequest("m", prompts, bad_words), EncodeRequest("m", prompts, (*bad_words, "y"))
    await tokenizer.encode(short)
    await tokenizer.encode(long)
    assert (near.requests, far.requests) == ([short], [long])


async def test_so_is_everything_else() -> None:
    near, far = Named(), Named()
    tokenizer: Tokenizer = NearTokenizer(near, far)
    for size in (MAX_SIZE, MAX_SIZE + 1):
        await tokenizer.decode("m", (5,) * size)
        await tokenizer.token_texts("m", (5,) * size)
        await tokenizer.count("m", ("x", "x" * (size - 1)))
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
