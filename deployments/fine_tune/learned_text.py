"""Which of a document's text is learned: all of it, what follows a prompt, or what the assistant says. Pure.

A chat template is a program, and says nowhere which of its text is whose. So conversations are rendered a second time,
with marks around the assistant's words: that is one more rendering, however many messages there are.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from deployments.errors import InvalidParameter
from deployments.training_documents import Completion, Conversation, Document, to_chat_prompt
from deployments.types import ChatMessage, ChatPrompt

Render = Callable[[ChatPrompt], str]
"""A chat template. Raises InvalidParameter."""

Span = tuple[int, int]
"""The characters from the first up to the second."""

_PRIVATE_USE = tuple(map(chr, range(0xE000, 0xF900)))


@dataclass(frozen=True, slots=True)
class LearnedText:
    """learned: spans in order; None: all of it. is_whole: every special token is spelled out, so that none is added."""

    text: str
    learned: tuple[Span, ...] | None
    is_whole: bool


def learned_text(document: Document, render: Render) -> LearnedText:
    """Raises InvalidParameter: the template refuses the messages, or does not show which are to be left out."""
    match document:
        case str():
            return LearnedText(document, None, is_whole=False)
        case Completion():
            span = (len(document.prompt), len(document.text))
            return LearnedText(document.text, (span,), is_whole=False)
        case Conversation():
            text = render(to_chat_prompt(document.messages))
            spans = _answers(document, text, render)
            if spans is None and document.not_learned:
                raise InvalidParameter(
                    "the model's chat template does not show where messages of weight 0 are", "weight"
                )
            return LearnedText(text, spans, is_whole=True)


def _answers(conversation: Conversation, text: str, render: Render) -> tuple[Span, ...] | None:
    """Where the assistant's words stand in the rendered text; None where the template does more than put them there."""
    used = set(text)
    unused = [character for character in _PRIVATE_USE if character not in used]
    if len(unused) < 2:
        return None
    begin, end, *_ = unused
    learned = [message for index, message in enumerate(conversation.messages) if conversation.is_learned(index)]
    marked = tuple(
        _marked(message, begin, end) if conversation.is_learned(index) else message
        for index, message in enumerate(conversation.messages)
    )
    try:
        parts = re.split(f"([{begin}{end}])", render(to_chat_prompt(marked)))
    except InvalidParameter:
        return None
    if "".join(parts[::2]) != text or parts[1::2] != [begin, end] * len(learned):
        return None
    spans, place = [], 0
    for before, answer, message in zip(parts[::4], parts[2::4], learned, strict=False):
        start = place + len(before)
        place = start + len(answer)
        spans.append(_with_blanks(message.content, text, start, place))
    return tuple(spans)


def _marked(message: ChatMessage, begin: str, end: str) -> ChatMessage:
    """Within the blanks at both ends, which templates may cut off."""
    leading, core, trailing = _parts(message.content)
    return replace(message, content=f"{leading}{begin}{core}{end}{trailing}")


def _with_blanks(content: str, text: str, start: int, stop: int) -> Span:
    """The span with the blanks at its ends that the template has left."""
    leading, _, trailing = _parts(content)
    if text.endswith(leading, 0, start):
        start -= len(leading)
    if text.startswith(trailing, stop):
        stop += len(trailing)
    return start, stop


def _parts(content: str) -> tuple[str, str, str]:
    core = content.strip()
    start = content.find(core)
    return content[:start], core, content[start + len(core) :]
