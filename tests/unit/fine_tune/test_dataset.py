"""From documents to packed rows: what stands where, what is learned, and in which order."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.errors import InvalidTrainingData
from deployments.fine_tune.dataset import (
    IGNORED,
    Array,
    Limits,
    Tokens,
    make_rows,
    order,
    orders,
    read_documents,
    split_off,
    tokenize,
)
from deployments.model_files import ModelFiles
from tests.factories import END_OF_TEXT_ID, IM_END_ID, make_tokenizer
from tests.unit.fine_tune.runs import learned

LIMITS = Limits((1,), (2,))
DOCUMENTS = st.lists(st.integers(2, 50), min_size=1, max_size=20).map(
    lambda lengths: [learned(np.arange(length, dtype=np.int32) + 1000 * index) for index, length in enumerate(lengths)]
)
PARTS = st.lists(st.lists(st.booleans(), min_size=2, max_size=50), min_size=1, max_size=20).map(
    lambda masks: [
        Tokens(ids, np.where(mask, ids, IGNORED).astype(np.int32))
        for index, mask in enumerate(masks)
        for ids in [np.arange(len(mask), dtype=np.int32) + 1000 * index]
    ]
)
"""Documents of which some tokens are learned, often none."""


def model_files(start: int | None, ends: tuple[int, ...]) -> ModelFiles:
    return ModelFiles(Path(), 512, 384, ends, None, start, None)


@pytest.mark.parametrize(
    ("start", "ends", "expected"),
    [
        (END_OF_TEXT_ID, (IM_END_ID, END_OF_TEXT_ID), Limits((END_OF_TEXT_ID,), (END_OF_TEXT_ID,))),
        (1, (2,), Limits((1,), (2,))),
        (None, (2, 5), Limits((), (2,))),
        (1, (), Limits((1,), ())),
    ],
    ids=["a separator that ends too", "begin and end", "no begin", "no end"],
)
def test_what_stands_around_a_document(start: int | None, ends: tuple[int, ...], expected: Limits) -> None:
    assert Limits.of(model_files(start, ends)) == expected


def test_documents_are_json_lines() -> None:
    assert read_documents(b'"a"\n"\\u2028b\\n"\n') == ["a", "\u2028b\n"]


@pytest.mark.parametrize("line", [b"7", b"{}", b"x", b""])
def test_other_lines_are_refused_with_their_number(line: bytes) -> None:
    with pytest.raises(InvalidTrainingData, match="line 2"):
        read_documents(b'"a"\n' + line + b"\n")


def test_tokens_are_the_models_own_within_the_limits() -> None:
    tokenizer = make_tokenizer()
    texts = ["The quick brown fox", "", "<|im_start|>user\n"]

    first, second = tokenize(texts, tokenizer, LIMITS, vocab_size=384)

    assert first.ids.tolist() == first.labels.tolist() == [1, *tokenizer.encode(texts[0]).ids, 2]
    assert second.ids.tolist() == second.labels.tolist() == [1, *tokenizer.encode(texts[2]).ids, 2]


def test_progress_is_told_while_tokenizing() -> None:
    ticks: list[None] = []

    tokenize(["a"] * 1000, make_tokenizer(), LIMITS, vocab_size=384, tick=lambda: ticks.append(None))

    assert len(ticks) == 4


@pytest.mark.parametrize(
    ("documents", "message"),
    [(["", ""], "nothing to train on"), ([], "nothing to train on"), (["a", "b\ud800"], "document 1 contains a lone")],
)
def test_data_that_cannot_be_learned_is_refused(documents: list[str], message: str) -> None:
    with pytest.raises(InvalidTrainingData, match=message) as failure:
        tokenize(documents, make_tokenizer(), LIMITS, vocab_size=384, param="validation_data")
    assert failure.value.param == "validation_data"


def test_a_token_beyond_the_models_vocabulary_is_refused() -> None:
    with pytest.raises(InvalidTrainingData, match="document 0"):
        tokenize(["The quick brown fox"], make_tokenizer(), LIMITS, vocab_size=20)


def test_one_token_alone_is_nothing_to_learn() -> None:
    with pytest.raises(InvalidTrainingData):
        tokenize(["a"], make_tokenizer(), Limits((), ()), vocab_size=384)


def followers(row_ids: Array, row_labels: Array) -> list[tuple[int, int]]:
    return [(int(a), int(b)) for a, b in zip(row_ids, row_labels, strict=True) if b != IGNORED]


@given(DOCUMENTS | PARTS, st.integers(1, 30), st.booleans())
def test_each_token_to_be_learned_is_learned_after_the_one_before_it_once(
    documents: list[Tokens], length: int, together: bool
) -> None:
    rows = make_rows(documents, length, together=together)

    found = [pair for ids, labels in zip(rows.token_ids, rows.labels, strict=True) for pair in followers(ids, labels)]
    expected = [
        (int(a), int(b))
        for tokens in documents
        for (a, b), label in zip(pairwise(tokens.ids), tokens.labels[1:], strict=True)
        if label != IGNORED
    ]
    assert sorted(found) == sorted(expected)
    assert rows.num_tokens == len(expected) == sum(tokens.num_learned for tokens in documents)
    assert ((rows.labels != IGNORED).sum(1) > 0).all()
    assert rows.token_ids.shape == rows.positions.shape == rows.labels.shape == (len(rows), length)


@given(DOCUMENTS, st.integers(1, 30), st.booleans())
def test_positions_begin_again_with_each_piece(documents: list[Tokens], length: int, together: bool) -> None:
    rows = make_rows(documents, length, together=together)

    for ids, positions, labels in zip(rows.token_ids, rows.positions, rows.labels, strict=True):
        assert positions[0] == 0
        for place in range(1, length):
            goes_on = positions[place] == positions[place - 1] + 1
            assert goes_on or positions[place] == 0
            if labels[place] != IGNORED:
                assert goes_on == (labels[place - 1] == ids[place])
        assert together or np.array_equal(positions[labels != IGNORED], np.arange((labels != IGNORED).sum()))


@given(st.integers(1, 40), st.integers(-5, 5), st.integers(0, 3))
def test_order_is_a_function_of_seed_and_epoch(num_rows: int, seed: int, epoch: int) -> None:
    assert order(num_rows, seed, epoch) == order(num_rows, seed, epoch)
    assert sorted(order(num_rows, seed, epoch)) == list(range(num_rows))
    assert list(orders(num_rows, seed, 3)) == [row for e in range(3) for row in order(num_rows, seed, e)]


def test_other_seeds_and_epochs_give_other_orders() -> None:
    found = [order(100, seed, epoch) for seed in range(3) for epoch in range(3)]

    assert len({json.dumps(each) for each in found}) == 9


@given(st.integers(1, 40), st.floats(0, 0.99), st.integers(0, 3))
def test_validation_documents_are_apart(count: int, share: float, seed: int) -> None:
    documents = [np.array([index], np.int32) for index in range(count)]

    train, validation = split_off(documents, share, seed)

    assert sorted(int(each[0]) for each in [*train, *validation]) == list(range(count))
    assert len(train) >= 1
    assert len(validation) == (0 if share == 0 or count == 1 else min(max(round(share * count), 1), count - 1))
    assert [each[0] for each in train] == sorted(each[0] for each in train)


def test_validation_documents_depend_on_the_seed() -> None:
    documents = [np.array([index], np.int32) for index in range(100)]

    first, again, other = (split_off(documents, 0.2, seed)[1] for seed in (1, 1, 2))

    assert [int(each[0]) for each in first] == [int(each[0]) for each in again]
    assert [int(each[0]) for each in first] != [int(each[0]) for each in other]


def test_digest_tells_rows_apart() -> None:
    documents = [learned(np.arange(9)), learned(np.arange(5))]
    changed = [learned(np.arange(1, 10)), documents[1]]
    learned_less = [documents[0], Tokens(documents[1].ids, np.where(np.arange(5) > 3, documents[1].ids, IGNORED))]

    assert make_rows(documents, 8).digest == make_rows(documents, 8).digest
    assert make_rows(documents, 8).digest != make_rows(documents, 16).digest
    assert make_rows(documents, 8).digest != make_rows(changed, 8).digest
    assert make_rows(documents, 8).digest != make_rows(learned_less, 8).digest
