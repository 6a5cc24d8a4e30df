"""Documents to train on, and the lines of a training-data blob that hold them. Pure.

A blob has a line for each document: a JSON string for a text of which all is learned; an object with `prompt` and
`completion`; for a conversation an array of objects with `role`, `content`, perhaps `name`, and `weight` 0 where an
answer is not learned. The model's chat template makes a text of a conversation, where it is tokenised.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from deployments.types import ChatMessage, ChatPrompt, Prompt, PromptStart, TextPrompt


@dataclass(frozen=True, slots=True)
class Completion:
    """A text of which the model learns what follows the prompt."""

    prompt: str
    completion: str

    @property
    def text(self) -> str:
        return self.prompt + self.completion


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages of which the model learns the assistant's; not_learned: where those stand that it does not."""

    messages: tuple[ChatMessage, ...]
    not_learned: frozenset[int] = frozenset()

    def is_learned(self, index: int) -> bool:
        return self.messages[index].role == "assistant" and index not in self.not_learned


Document = str | Completion | Conversation


def to_line(document: Document) -> bytes:
    """Raises UnicodeEncodeError for half of a surrogate pair, which is no text."""
    value: Any
    match document:
        case str():
            value = document
        case Completion():
            value = {"prompt": document.prompt, "completion": document.completion}
        case Conversation():
            value = [
                _to_object(message) | ({"weight": 0} if index in document.not_learned else {})
                for index, message in enumerate(document.messages)
            ]
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def read_lines(blob: bytes) -> Iterator[Document]:
    """What was written by `to_line`, in order. Raises ValueError for a line that was not."""
    for line in blob.splitlines():
        yield _from_json(json.loads(line))


def to_prompt(document: Document) -> Prompt:
    """The document as the tokenizer takes it: a whole text without special tokens, or a conversation that has ended."""
    match document:
        case str():
            return TextPrompt(document, PromptStart.PLAIN)
        case Completion():
            return TextPrompt(document.text, PromptStart.PLAIN)
        case Conversation():
            return to_chat_prompt(document.messages)


def to_chat_prompt(messages: tuple[ChatMessage, ...]) -> ChatPrompt:
    """The messages for a chat template, with nothing open at their end."""
    return ChatPrompt(messages, add_generation_prompt=False)


def num_bytes(document: Document) -> int:
    """Of its text, in UTF-8. Raises UnicodeEncodeError."""
    match document:
        case str():
            texts = [document]
        case Completion():
            texts = [document.prompt, document.completion]
        case Conversation():
            texts = [message.content for message in document.messages]
    return sum(len(text.encode()) for text in texts)


def _from_json(value: Any) -> Document:
    match value:
        case str():
            return value
        case {"prompt": str(prompt), "completion": str(completion)} if len(value) == 2:
            return Completion(prompt, completion)
        case [_, *_]:
            return Conversation(
                tuple(map(_to_message, value)),
                frozenset(index for index, each in enumerate(value) if each.get("weight") == 0),
            )
    raise ValueError("neither a text nor a completion nor a conversation")


def _to_message(value: Any) -> ChatMessage:
    try:
        return ChatMessage(**{name: each for name, each in value.items() if (name, each) != ("weight", 0)})
    except (AttributeError, TypeError):
        raise ValueError("a message has a role, a content and perhaps a name and the weight 0") from None


def _to_object(message: ChatMessage) -> dict[str, Any]:
    named = {} if message.name is None else {"name": message.name}
    return {"role": message.role, "content": message.content, **named}
