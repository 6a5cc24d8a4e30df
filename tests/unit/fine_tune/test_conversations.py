"""Conversations as training data: what is learned is exactly what a chat request is answered."""

from dataclasses import replace

import pytest
from tokenizers import Tokenizer

from deployments.chat_template import ChatTemplate
from deployments.errors import InvalidTrainingData
from deployments.fine_tune.dataset import IGNORED, Limits, Tokens, read_documents, tokenize
from deployments.training_documents import Completion, Conversation, Document, to_line
from deployments.types import ChatMessage
from tests.factories import CHAT_TEMPLATE, IM_END_ID, IM_START_ID, make_byte_fallback_tokenizer, make_tokenizer
from tests.unit.engine.adapters import PEFT_WARNING
from tests.unit.fine_tune.runs import PARAMS, Trainings

pytestmark = pytest.mark.filterwarnings(PEFT_WARNING)

LIMITS = Limits((1,), (2,))
CHAT = Conversation((ChatMessage("user", "Who?"), ChatMessage("assistant", "A fox.")))
RENDERED = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nA fox.<|im_end|>\n"


def test_they_are_read_beside_texts() -> None:
    assert read_documents(to_line("text") + to_line(CHAT)) == ["text", CHAT]


def test_special_tokens_of_the_template_are_those_of_the_model_and_no_others_stand_around() -> None:
    tokenizer, template = make_tokenizer(), ChatTemplate(CHAT_TEMPLATE, {})

    text, chat = tokenize(["Who?", CHAT], tokenizer, LIMITS, vocab_size=384, render=template.render)

    assert text.ids.tolist() == [1, *tokenizer.encode("Who?").ids, 2]
    assert chat.ids.tolist() == tokenizer.encode(RENDERED).ids
    assert (chat.ids.tolist().count(IM_START_ID), chat.ids.tolist().count(IM_END_ID)) == (2, 2)


def tokens(document: Document, tokenizer: Tokenizer, template: str = CHAT_TEMPLATE) -> Tokens:
    render = ChatTemplate(template, {}).render
    [found] = tokenize([document], tokenizer, LIMITS, vocab_size=tokenizer.get_vocab_size(), render=render)
    return found


def learned(tokens: Tokens) -> list[int]:
    return [label for label in tokens.labels.tolist() if label != IGNORED]


def test_the_assistant_s_words_are_learned_and_where_they_end() -> None:
    tokenizer = make_tokenizer()
    chat = tokens(
        Conversation(
            (
                ChatMessage("system", "A fox."),
                ChatMessage("user", "A fox."),
                ChatMessage("assistant", "Grüße 😀\n"),
                ChatMessage("user", "A fox."),
                ChatMessage("assistant", ""),
                ChatMessage("assistant", "A fox."),
            ),
            frozenset({5}),
        ),
        tokenizer,
    )
    answers = [*tokenizer.encode("Grüße 😀\n").ids, IM_END_ID]
    assert learned(chat) == [*answers, IM_END_ID]
    place = chat.ids.tolist().index(answers[0], 20)
    assert chat.labels[place : place + len(answers)].tolist() == answers


def test_a_blank_before_the_end_of_a_turn_is_learned_with_it() -> None:
    tokenizer = make_byte_fallback_tokenizer()
    template = "{% for message in messages %}{{ message.content }} </s>{% endfor %}"
    chat = tokens(CHAT, tokenizer, template)
    end = tokenizer.token_to_id("</s>")
    answer = tokenizer.encode("Who? </s>A fox. </s>").ids
    assert learned(chat) == answer[answer.index(end) + 1 :]


def test_without_special_tokens_it_is_the_blanks_that_end_a_turn() -> None:
    tokenizer = make_tokenizer()
    template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n\n{% endfor %}"
    assert learned(tokens(CHAT, tokenizer, template)) == tokenizer.encode("A fox.\n\n").ids


def test_of_a_completion_the_prompt_is_not_learned_but_the_end() -> None:
    tokenizer = make_tokenizer()
    found = tokens(Completion("Once upon a time", " there was a fox."), tokenizer)
    assert found.ids.tolist() == [1, *tokenizer.encode("Once upon a time there was a fox.").ids, 2]
    assert learned(found) == [1, *tokenizer.encode(" there was a fox.").ids, 2]  # the first one follows nothing
    assert found.num_learned == len(learned(found)) - 1


def test_a_conversation_of_which_nothing_is_learned_leaves_none() -> None:
    silent = Conversation((ChatMessage("user", "Who?"), ChatMessage("assistant", "")))
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    with pytest.raises(InvalidTrainingData, match="nothing to train on"):
        tokens(silent, make_tokenizer(), template)


def test_a_weight_that_cannot_be_kept_is_told_with_the_document() -> None:
    chat = Conversation((ChatMessage("assistant", "a"), ChatMessage("assistant", "b")), frozenset({0}))
    template = "{{ messages[1].content | length }}{{ messages[1].content }}"
    with pytest.raises(InvalidTrainingData, match="document 0: the model's chat template does not show"):
        tokens(chat, make_tokenizer(), template)


def test_model_without_a_template_learns_texts_only() -> None:
    with pytest.raises(InvalidTrainingData, match="document 1: the model has no chat template"):
        tokenize(["text", CHAT], make_tokenizer(), LIMITS, vocab_size=384)


def test_model_learns_them(trainings: Trainings) -> None:
    digest = trainings.artifacts.put_blob(to_line(CHAT) * 40)
    params = replace(PARAMS, epochs=4, seed=1)

    trained = trainings.train(trainings.request(params, training_data=digest))

    assert trained.started.num_documents == 40
    losses = [progress.loss for progress in trained.progress]
    assert losses[-1] < losses[0] / 2
