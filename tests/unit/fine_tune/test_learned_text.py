"""What of a document is learned, whatever a chat template does with the messages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.chat_template import ChatTemplate
from deployments.errors import InvalidParameter
from deployments.fine_tune.learned_text import Render, learned_text
from deployments.training_documents import Completion, Conversation
from deployments.types import ChatMessage, ChatPrompt
from tests.factories import CHAT_TEMPLATE

TRIMMING = (
    "{{ bos_token }}{% for message in messages %}<{{ message.role }}>\n{{ message.content | trim }}</s>\n{% endfor %}"
)
FIRST_IS_SHOUTED = (
    "{% for message in messages %}{{ message.content | upper if loop.first else message.content }};{% endfor %}"
)
THINKING_IS_LEFT_OUT = "{% for message in messages %}{{ message.content.split('</think>')[-1] }};{% endfor %}"
NO_LONG_ANSWERS = (
    "{% for message in messages %}{% if message.content | length > 6 %}{{ raise_exception('too long') }}{% endif %}"
    "{{ message.content }};{% endfor %}"
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n\ue000\ue001<>"))
MESSAGES = st.lists(st.builds(ChatMessage, st.sampled_from(["system", "user", "assistant"]), TEXT), min_size=1)


def rendering(source: str) -> Render:
    return ChatTemplate(source, {"bos_token": "<s>"}).render


def learned(conversation: Conversation, source: str) -> list[str] | None:
    found = learned_text(conversation, rendering(source))
    assert found.is_whole
    assert found.text == rendering(source)(ChatPrompt(conversation.messages, add_generation_prompt=False))
    return None if found.learned is None else [found.text[start:stop] for start, stop in found.learned]


def chat(*contents: str, not_learned: frozenset[int] = frozenset()) -> Conversation:
    roles = ("user", "assistant")
    return Conversation(
        tuple(ChatMessage(roles[index % 2], content) for index, content in enumerate(contents)), not_learned
    )


def test_of_a_text_all_and_of_a_completion_what_follows_the_prompt() -> None:
    text = learned_text("A fox.", rendering(CHAT_TEMPLATE))
    assert (text.text, text.learned, text.is_whole) == ("A fox.", None, False)
    completion = learned_text(Completion("Who? ", "A fox."), rendering(CHAT_TEMPLATE))
    assert (completion.text, completion.learned, completion.is_whole) == ("Who? A fox.", ((5, 11),), False)


@given(MESSAGES)
def test_answers_are_found_in_a_template_that_takes_them_as_they_are(messages: list[ChatMessage]) -> None:
    answers = [message.content for message in messages if message.role == "assistant"]
    assert learned(Conversation(tuple(messages)), CHAT_TEMPLATE) == answers


@given(MESSAGES)
def test_answers_are_found_in_a_template_that_trims_them(messages: list[ChatMessage]) -> None:
    found = learned(Conversation(tuple(messages)), TRIMMING)
    answers = [message.content.strip() for message in messages if message.role == "assistant"]
    assert found is not None
    assert [answer.strip() for answer in found] == answers


def test_what_is_not_to_be_learned_is_not() -> None:
    conversation = chat("Who?", "A fox.", "Sure?", "A fox.", not_learned=frozenset({1}))
    found = learned_text(conversation, rendering(CHAT_TEMPLATE))
    assert found.learned is not None
    [(start, stop)] = found.learned
    assert found.text[start:stop] == "A fox."
    assert start > found.text.index("Sure?")


@pytest.mark.parametrize(
    ("source", "conversation", "expected"),
    [
        (FIRST_IS_SHOUTED, chat("who?", "a fox"), ["a fox"]),
        (FIRST_IS_SHOUTED, Conversation((ChatMessage("assistant", "ß"), ChatMessage("user", "x"))), ["SS"]),
        (THINKING_IS_LEFT_OUT, chat("who?", "a fox"), ["a fox"]),
        (THINKING_IS_LEFT_OUT, chat("who?", "<think>hm</think>a fox"), None),
        (CHAT_TEMPLATE, chat("".join(map(chr, range(0xE000, 0xF8FF))), "a fox"), None),
        (NO_LONG_ANSWERS, chat("who?", "a dog", "now?", "a fox"), None),
    ],
)
def test_all_is_learned_where_a_template_hides_which_words_are_the_answers(
    source: str, conversation: Conversation, expected: list[str] | None
) -> None:
    assert learned(conversation, source) == expected


def test_nothing_is_left_out_in_silence() -> None:
    conversation = chat("who?", "<think>hm</think>a fox", "now?", "a dog", not_learned=frozenset({3}))
    with pytest.raises(InvalidParameter, match="weight 0"):
        learned_text(conversation, rendering(THINKING_IS_LEFT_OUT))
