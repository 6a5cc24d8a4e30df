"""Conversations as training data: what is learned is exactly what a chat request continues."""

from dataclasses import replace

import pytest

from deployments.chat_template import ChatTemplate
from deployments.errors import InvalidTrainingData
from deployments.fine_tune.dataset import Limits, read_documents, tokenize
from deployments.training_documents import to_line
from deployments.types import ChatMessage
from tests.factories import CHAT_TEMPLATE, IM_END_ID, IM_START_ID, make_tokenizer
from tests.unit.engine.adapters import PEFT_WARNING
from tests.unit.fine_tune.runs import PARAMS, Trainings

pytestmark = pytest.mark.filterwarnings(PEFT_WARNING)

LIMITS = Limits((1,), (2,))
CHAT = (ChatMessage("user", "Who?"), ChatMessage("assistant", "A fox."))
RENDERED = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nA fox.<|im_end|>\n"


def test_they_are_read_beside_texts() -> None:
    assert read_documents(to_line("text") + to_line(CHAT)) == ["text", CHAT]


def test_special_tokens_of_the_template_are_those_of_the_model_and_no_others_stand_around() -> None:
    tokenizer, template = make_tokenizer(), ChatTemplate(CHAT_TEMPLATE, {})

    text, chat = tokenize(["Who?", CHAT], tokenizer, LIMITS, vocab_size=384, render=template.render)

    assert text.tolist() == [1, *tokenizer.encode("Who?").ids, 2]
    assert chat.tolist() == tokenizer.encode(RENDERED).ids
    assert (chat.tolist().count(IM_START_ID), chat.tolist().count(IM_END_ID)) == (2, 2)


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
