"""Lines of training data: whatever a document holds comes back as it was."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.training_documents import Completion, Conversation, Document, num_bytes, read_lines, to_line, to_prompt
from deployments.types import ChatMessage, ChatPrompt, PromptStart, TextPrompt

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
MESSAGE = st.builds(ChatMessage, role=TEXT, content=TEXT, name=st.none() | TEXT)
CONVERSATION = st.lists(MESSAGE, min_size=1).flatmap(
    lambda messages: st.builds(
        Conversation, st.just(tuple(messages)), st.frozensets(st.integers(0, len(messages) - 1), max_size=3)
    )
)
DOCUMENT = TEXT | st.builds(Completion, TEXT, TEXT) | CONVERSATION


@given(st.lists(DOCUMENT))
def test_documents_come_back_as_they_were(documents: list[Document]) -> None:
    blob = b"".join(map(to_line, documents))
    assert blob.count(b"\n") == len(documents)
    assert list(read_lines(blob)) == documents


@given(DOCUMENT)
def test_size_is_that_of_the_text(document: Document) -> None:
    match document:
        case str():
            text = document
        case Completion():
            text = document.text
        case Conversation():
            text = "".join(message.content for message in document.messages)
    assert num_bytes(document) == len(text.encode())


@pytest.mark.parametrize(
    "document", ["\ud800", Completion("", "\udc00"), Conversation((ChatMessage("user", "\udfff"),))]
)
def test_half_of_a_surrogate_pair_is_no_text(document: Document) -> None:
    for measure in (to_line, num_bytes):
        with pytest.raises(UnicodeEncodeError):
            measure(document)


@pytest.mark.parametrize(
    "line",
    [
        b"7",
        b"null",
        b"{}",
        b'{"prompt": "a"}',
        b'{"prompt": "a", "completion": 7}',
        b"[]",
        b"[7]",
        b'[{"weight": 0}]',
        b'[{"role": "user"}]',
        b'[{"role": "u", "content": "c", "x": 1}]',
        b"",
    ],
)
def test_other_lines_are_told_apart(line: bytes) -> None:
    with pytest.raises(ValueError):
        list(read_lines(b'"a"\n' + line + b"\n"))


def test_text_is_encoded_as_it_is_and_a_conversation_by_the_template() -> None:
    assert to_prompt("text") == TextPrompt("text", PromptStart.PLAIN)
    messages = (ChatMessage("user", "hi"), ChatMessage("assistant", "hello"))
    assert to_prompt(Completion("te", "xt")) == to_prompt("text")
    assert to_prompt(Conversation(messages)) == ChatPrompt(messages, add_generation_prompt=False)
