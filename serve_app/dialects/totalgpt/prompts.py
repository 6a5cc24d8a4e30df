"""The forms in which clients give prompts and messages, and the canonical prompts they stand for. Pure."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from pydantic import Field

from deployments.errors import InvalidParameter, InvalidRequest
from deployments.types import ChatMessage, ChatPrompt, Prompt, PromptStart, TextPrompt, TokenPrompt
from serve_app.dialects.totalgpt.fields import MAX_INT32, NullableFields

PROMPT_SCHEMA: dict[str, Any] = {
    "description": "A text, several texts, the token ids of a text, or those of several texts.",
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}},
        {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}},
        {
            "type": "array",
            "minItems": 1,
            "items": {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}},
        },
    ],
}

_EXPECTED = "must be a string, an array of strings, an array of token ids, or an array of arrays of token ids"


class TextPart(NullableFields):
    type: Literal["text"]
    text: str


class Message(NullableFields):
    """`developer` is what OpenAI's newer clients call the system role."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = None
    tool_calls: list[Any] = Field(default_factory=list, max_length=0)
    function_call: None = None

    @property
    def text(self) -> str:
        """The content; several parts stand on lines of their own, as vLLM puts them."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class ChatFields(NullableFields):
    """The messages, and vLLM's switches of how the template ends them."""

    messages: list[Message] = Field(min_length=1)
    add_generation_prompt: bool | None = Field(
        None, description="Whether the template opens the assistant's turn; true unless the last message is continued."
    )
    continue_final_message: bool = Field(False, description="Whether the answer goes on with the last message.")


def to_chat_prompt(fields: ChatFields) -> ChatPrompt:
    """Raises InvalidParameter where the last message is both left open and followed by a new turn."""
    if fields.add_generation_prompt and fields.continue_final_message:
        raise InvalidParameter(
            "continue_final_message cannot be combined with add_generation_prompt", "continue_final_message"
        )
    messages = tuple(
        ChatMessage("system" if message.role == "developer" else message.role, message.text, message.name)
        for message in fields.messages
    )
    add_generation_prompt = (
        fields.add_generation_prompt if fields.add_generation_prompt is not None else not fields.continue_final_message
    )
    return ChatPrompt(messages, add_generation_prompt, fields.continue_final_message)


@contextmanager
def naming_messages(*, is_chat: bool = True) -> Iterator[None]:
    """Errors about a prompt are about the messages where the prompt is made of messages."""
    try:
        yield
    except InvalidRequest as error:
        if is_chat and error.param == "prompt":
            error.param = "messages"
        raise


def to_prompts(value: Any, *, add_special_tokens: bool, max_prompts: int) -> tuple[Prompt, ...]:
    """The prompts that a `prompt` field holds, in order. Raises InvalidParameter."""
    start = PromptStart.DEFAULT if add_special_tokens else PromptStart.PLAIN
    if isinstance(value, str):
        return (_text_prompt(value, start, "prompt"),)
    if not isinstance(value, list):
        raise InvalidParameter(f"prompt {_EXPECTED}", "prompt")
    if not value:
        raise InvalidParameter("prompt must not be empty", "prompt")
    if isinstance(value[0], int):
        return (_token_prompt(value, "prompt"),)
    if len(value) > max_prompts:
        raise InvalidParameter(f"prompt must hold at most {max_prompts} prompts", "prompt")
    first_type = type(value[0])
    if first_type not in (str, list) or any(type(item) is not first_type for item in value):
        raise InvalidParameter(f"prompt {_EXPECTED}", "prompt")
    return tuple(
        _text_prompt(item, start, f"prompt[{index}]")
        if isinstance(item, str)
        else _token_prompt(item, f"prompt[{index}]")
        for index, item in enumerate(value)
    )


def _text_prompt(text: str, start: PromptStart, name: str) -> TextPrompt:
    if not text:
        raise InvalidParameter(f"{name} must not be empty", name)
    return TextPrompt(text, start)


def _token_prompt(token_ids: list[Any], name: str) -> TokenPrompt:
    if not token_ids:
        raise InvalidParameter(f"{name} must not be empty", name)
    for index, token_id in enumerate(token_ids):
        # A boolean is an int to Python, and no token id to anybody.
        if type(token_id) is not int or not 0 <= token_id <= MAX_INT32:
            raise InvalidParameter(f"{name}[{index}] must be a token id, an integer from 0", f"{name}[{index}]")
    return TokenPrompt(tuple(token_ids))
