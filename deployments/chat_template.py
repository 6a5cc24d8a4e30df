"""Renders chat messages through a model's own template, in a sandbox. Knows no tokenizer."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from deployments.errors import InvalidParameter
from deployments.types import ChatMessage, ChatPrompt

_END_OF_MESSAGE = "<end of the message to be continued> "


class _Refused(TemplateError):
    """The template called `raise_exception`: it does not take these messages."""


class _GenerationBlock(Extension):
    """`{% generation %}`, by which templates mark the assistant's words for training: its content stands as it is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A compiled template, with the variables and functions that Hugging Face's chat templates expect.

    Content is put into the text as it is. So, as everywhere in this convention, a message that spells out a special
    token makes that token: who builds messages from untrusted text must remove such spellings.
    """

    def __init__(
        self, source: str, special_tokens: Mapping[str, str], *, now: Callable[[], datetime] = datetime.now
    ) -> None:
        """Raises jinja2.TemplateSyntaxError."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda pattern: now().strftime(pattern)
        self._template = environment.from_string(source)
        self._special_tokens = dict(special_tokens)

    def render(self, prompt: ChatPrompt) -> str:
        """The text of the messages, special tokens spelled out.

        A template that refuses a system message is given its text at the beginning of the first user message.
        Raises InvalidParameter.
        """
        if not prompt.messages:
            raise InvalidParameter("there must be at least one message", "messages")
        if prompt.continue_final_message and prompt.add_generation_prompt:
            raise InvalidParameter(
                "the last message is either continued or answered, so not both of add_generation_prompt and "
                "continue_final_message",
                "continue_final_message",
            )
        try:
            return self._render(prompt)
        except _Refused as refusal:
            folded = _without_system(prompt.messages)
            if folded == prompt.messages:
                raise _invalid(refusal) from refusal
        try:
            return self._render(replace(prompt, messages=folded))
        except _Refused as refusal:
            raise _invalid(refusal) from refusal

    def _render(self, prompt: ChatPrompt) -> str:
        messages = [_as_mapping(message) for message in prompt.messages]
        if prompt.continue_final_message:
            messages[-1]["content"] += _END_OF_MESSAGE
        try:
            text = self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=prompt.add_generation_prompt,
                **self._special_tokens,
            )
        except _Refused:
            raise
        except Exception as error:  # a template is a program: on messages it did not foresee it may fail in any way
            raise InvalidParameter("the model's chat template cannot render these messages", "messages") from error
        return _up_to_end_of_message(text) if prompt.continue_final_message else text


def _up_to_end_of_message(text: str) -> str:
    """The text before the mark. A template that trims content trims the space after the mark, so trim before it too."""
    position = text.rfind(_END_OF_MESSAGE.strip())
    if position < 0:
        raise InvalidParameter("the model's chat template does not show the message to be continued", "messages")
    before = text[:position]
    return before if text.startswith(_END_OF_MESSAGE, position) else before.rstrip()


def _without_system(messages: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
    """The messages with the text of all system messages before that of the first user message."""
    system = [message.content for message in messages if message.role == "system"]
    others = [message for message in messages if message.role != "system"]
    if not system:
        return tuple(messages)
    for index, message in enumerate(others):
        if message.role == "user":
            others[index] = replace(message, content="\n\n".join([*system, message.content]))
            return tuple(others)
    return (ChatMessage(role="user", content="\n\n".join(system)), *others)


def _as_mapping(message: ChatMessage) -> dict[str, str]:
    mapping = {"role": message.role, "content": message.content}
    return mapping if message.name is None else mapping | {"name": message.name}


def _invalid(refusal: _Refused) -> InvalidParameter:
    return InvalidParameter(f"the model's chat template refuses these messages: {refusal.message}", "messages")


def _refuse(message: str) -> NoReturn:
    raise _Refused(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which a model never saw."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
