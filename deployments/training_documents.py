"""Documents to train on: texts and conversations, and the lines of a training-data blob that hold them. Pure.

A blob has a line for each document: a JSON string, or for a conversation an array of objects with `role`, `content` and
perhaps `name`. The model's chat template makes a text of a conversation, where it is tokenised.
"""

import json
from collections.abc import Iterator
from typing import Any

from deployments.types import ChatMessage, ChatPrompt, Prompt, PromptStart, TextPrompt

Document = str | tuple[ChatMessage, ...]


def to_line(document: Document) -> bytes:
    """Raises UnicodeEncodeError for half of a surrogate pair, which is no text."""
    value = document if isinstance(document, str) else [_to_object(message) for message in document]
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def read_lines(blob: bytes) -> Iterator[Document]:
    """What was written by `to_line`, in order. Raises ValueError for a line that was not."""
    for line in blob.splitlines():
        value = json.loads(line)
        if not isinstance(value, str) and not (value and isinstance(value, list)):
            raise ValueError("neither a text nor a conversation")
        yield value if isinstance(value, str) else tuple(map(_to_message, value))


def to_prompt(document: Document) -> Prompt:
    """The document as the tokenizer takes it: a whole text without special tokens, or a conversation that has ended."""
    if isinstance(document, str):
        return TextPrompt(document, PromptStart.PLAIN)
    return to_chat_prompt(document)


def to_chat_prompt(conversation: tuple[ChatMessage, ...]) -> ChatPrompt:
    """The conversation for a chat template, with nothing open at its end."""
    return ChatPrompt(conversation, add_generation_prompt=False)


def num_bytes(document: Document) -> int:
    """Of its text, in UTF-8. Raises UnicodeEncodeError."""
    texts = (document,) if isinstance(document, str) else [message.content for message in document]
    return sum(len(text.encode()) for text in texts)


def _to_message(value: Any) -> ChatMessage:
    try:
        return ChatMessage(**value)
    except TypeError:
        raise ValueError("a message has a role, a content and perhaps a name") from None


def _to_object(message: ChatMessage) -> dict[str, str]:
    named = {} if message.name is None else {"name": message.name}
    return {"role": message.role, "content": message.content, **named}
