"""Documents from JSON lines: texts, prompts with completions, conversations. Pure; knows no HTTP.

Fields that none of these forms has are not read; what would change the meaning of those that are read is refused.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from deployments.errors import InvalidTrainingData
from deployments.training_documents import Completion, Conversation, Document
from deployments.types import ChatMessage

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_REFUSED = ("tools", "functions", "parallel_tool_calls")
_REFUSED_OF_MESSAGES = ("tool_calls", "tool_call_id", "function_call", "audio")


class _Misfit(ValueError):
    """What is wrong with a line."""


def parse_json_lines(text: str, param: str) -> Iterator[Document]:
    """A document for each line that is not blank. Raises InvalidTrainingData with the number of the line."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield _document(_loads(line))
        except _Misfit as misfit:
            raise InvalidTrainingData(f"line {number}: {misfit}", param) from None


def _loads(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise _Misfit(f"not valid JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError):
        raise _Misfit("not valid JSON: too long a number, or nested too deep") from None


def _document(value: Any) -> Document:
    if isinstance(value, str):
        return _text(value, "the text")
    if not isinstance(value, dict):
        raise _Misfit("must be a string or an object")
    forms: Mapping[str, Callable[[], Document]] = {
        "messages": lambda: _conversation(value),
        "completion": lambda: Completion(_string(value, "prompt"), _text(value["completion"], "completion")),
        "text": lambda: _text(value["text"], "text"),
    }
    found = [name for name in forms if name in value]
    if len(found) != 1:
        raise _Misfit("must have exactly one of messages, text, and completion with prompt")
    return forms[found[0]]()


def _conversation(value: Mapping[str, Any]) -> Conversation:
    for name in _REFUSED:
        if value.get(name):
            raise _Misfit(f"{name} is not supported")
    messages = value["messages"]
    if not isinstance(messages, list) or not messages:
        raise _Misfit("messages must be an array that is not empty")
    conversation = Conversation(
        tuple(_message(message, f"messages[{index}]") for index, message in enumerate(messages)),
        frozenset(index for index, message in enumerate(messages) if message.get("weight") == 0),
    )
    if not any(conversation.is_learned(index) for index in range(len(messages))):
        raise _Misfit("messages must have at least one of the assistant, with a weight other than 0")
    return conversation


def _message(value: Any, place: str) -> ChatMessage:
    if not isinstance(value, dict):
        raise _Misfit(f"{place} must be an object")
    for refused in _REFUSED_OF_MESSAGES:
        if value.get(refused):
            raise _Misfit(f"{place}.{refused} is not supported")
    weight = value.get("weight")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise _Misfit(f"{place}.weight must be 0 or 1")
    role = value.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise _Misfit(f"{place}.role must be system, developer, user or assistant")
    name = None if value.get("name") is None else _string(value, "name", place)
    return ChatMessage(_ROLES[role], _content(value.get("content"), f"{place}.content"), name)


def _content(value: Any, place: str) -> str:
    """A text, also where it comes in parts."""
    if isinstance(value, list):
        for index, part in enumerate(value):
            if not isinstance(part, dict) or part.get("type") != "text":
                raise _Misfit(f"{place}[{index}] must be a part of the type text")
        return "".join(_string(part, "text", f"{place}[{index}]") for index, part in enumerate(value))
    return _checked(value, place)


def _string(value: Mapping[str, Any], name: str, place: str = "") -> str:
    return _checked(value.get(name), f"{place}.{name}" if place else name)


def _text(value: Any, place: str) -> str:
    text = _checked(value, place)
    if not text:
        raise _Misfit(f"{place} is empty")
    return text


def _checked(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise _Misfit(f"{place} must be a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _Misfit(f"{place} holds half of a surrogate pair, which is no text") from None
    return value
