"""Tokens of documents: texts, conversations and both; the first that is at fault is named."""

from typing import Any

import pytest

from deployments.errors import InvalidParameter, InvalidTrainingData
from deployments.training_documents import Completion, Conversation, Document
from deployments.types import ChatMessage, ChatPrompt, EncodeRequest, EncodeResult
from serve_app.use_cases.token_counts import count_tokens
from tests.fakes import FakeTokenizer

CHAT = Conversation((ChatMessage("user", "hi"), ChatMessage("assistant", "hello")))
REFUSED = Conversation((ChatMessage("system", "x"),))
CHAT_TOKENS = len("user: hi\nassistant: hello")


class PickyTokenizer(FakeTokenizer):
    """Its template takes no system messages."""

    async def encode(self, request: EncodeRequest) -> EncodeResult:
        for prompt in request.prompts:
            if isinstance(prompt, ChatPrompt) and prompt.messages[0].role == "system":
                raise InvalidParameter("the template refuses these messages", "messages")
        return await super().encode(request)


@pytest.mark.parametrize(
    ("documents", "num_tokens"),
    [
        (["abc", "de"], 5),
        ([CHAT, CHAT], 2 * CHAT_TOKENS),
        (["abc", CHAT, "de"], 5 + CHAT_TOKENS),
        ([Completion("abc", "de"), "f"], 6),
        ([], 0),
    ],
)
async def test_all_documents_are_counted(documents: list[Document], num_tokens: int) -> None:
    assert await count_tokens(FakeTokenizer(), "base", documents, "file") == num_tokens


async def test_much_text_is_counted_in_parts() -> None:
    tokenizer = FakeTokenizer()
    asked: list[int] = []

    async def count(model: str, texts: tuple[str, ...]) -> tuple[int, ...]:
        del model
        asked.append(len(texts))
        return tuple(map(len, texts))

    tokenizer.count = count  # type: ignore[method-assign]
    assert await count_tokens(tokenizer, "base", ["x" * 600_000] * 5, "file") == 3_000_000
    assert asked == [2, 2, 1]


@pytest.mark.parametrize(
    ("documents", "place"),
    [
        (["a", "", "b", ""], "data[1]"),
        ([CHAT, REFUSED, CHAT], "data[1]"),
        (["a", CHAT, REFUSED], "data[2]"),
    ],
)
async def test_first_document_at_fault_is_named(documents: list[Any], place: str) -> None:
    with pytest.raises(InvalidTrainingData) as raised:
        await count_tokens(PickyTokenizer(), "base", documents, "data")
    assert raised.value.param == place
