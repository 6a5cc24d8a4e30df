"""Guesses of what follows: where they come from, and when there are none."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from deployments.engine.prompt_lookup import PromptLookup
from deployments.engine.sequence import Sequence
from deployments.types import SamplingParams


def make_sequence(prompt: list[int], output: list[int] | None = None) -> Sequence:
    return Sequence(1, 1, 0, tuple(prompt), SamplingParams(), frozenset(), 1000, output_token_ids=output or [])


def eager(lookup: PromptLookup, sequence: Sequence) -> PromptLookup:
    """Guesses as many tokens as it ever will."""
    lookup.guess(sequence, 1)
    for _ in range(5):
        lookup.learn(sequence, 1, 1)
    return lookup


def test_goes_on_as_after_the_last_occurrence() -> None:
    sequence = make_sequence([1, 2, 3, 4, 5, 1, 2, 3, 6, 7, 8, 9], [1, 2, 3])
    assert eager(PromptLookup(), sequence).guess(sequence, 4) == [6, 7, 8, 9]


def test_goes_on_with_a_repetition_beyond_the_end() -> None:
    sequence = make_sequence([1], [2, 3, 4, 2, 3, 4])
    assert eager(PromptLookup(), sequence).guess(sequence, 8) == [2, 3, 4, 2, 3, 4, 2, 3]


def test_what_was_never_met_gives_no_guess() -> None:
    sequence = make_sequence([1, 2, 3, 4, 5])
    assert PromptLookup().guess(sequence, 8) == []
    assert PromptLookup().guess(make_sequence([1]), 8) == []


def test_guesses_grow_while_they_are_right_and_shrink_when_not() -> None:
    sequence = make_sequence([1, 2, 3, 4] * 4)
    lookup = PromptLookup()
    assert len(lookup.guess(sequence, 100)) == 2
    lookup.learn(sequence, 2, 2)
    assert len(lookup.guess(sequence, 100)) == 4
    lookup.learn(sequence, 4, 4)
    lookup.learn(sequence, 8, 8)
    assert len(lookup.guess(sequence, 100)) == 8
    lookup.learn(sequence, 8, 3)
    assert len(lookup.guess(sequence, 100)) == 3


def test_pauses_longer_and_longer_where_it_does_not_help() -> None:
    sequence = make_sequence([1, 2, 3, 4] * 4)
    lookup = PromptLookup()
    tried_at = []
    for length in range(200):
        if lookup.guess(sequence, 8):
            tried_at.append(length)
            lookup.learn(sequence, 1, 0)
        sequence.output_token_ids.append(1 + length % 4)
    pauses = [after - before for before, after in pairwise(tried_at)]
    assert pauses == [1, 4, 8, 16, 32, 64, 64]


def test_a_right_guess_ends_the_mistrust() -> None:
    sequence = make_sequence([1, 2, 3, 4] * 4)
    lookup = PromptLookup()
    lookup.guess(sequence, 1)
    lookup.learn(sequence, 1, 0)
    lookup.learn(sequence, 1, 1)
    lookup.learn(sequence, 1, 0)
    assert lookup.guess(sequence, 1)


def test_forgets_a_sequence() -> None:
    sequence = make_sequence([1, 2, 3, 4] * 4)
    lookup = PromptLookup()
    for _ in range(4):
        assert lookup.guess(sequence, 1)
        lookup.learn(sequence, 1, 0)
        lookup.forget(sequence)


@given(
    prompt=st.lists(st.integers(0, 2), min_size=1, max_size=30),
    pieces=st.lists(st.lists(st.integers(0, 2), max_size=4), max_size=8),
)
def test_finds_what_a_search_finds(prompt: list[int], pieces: list[list[int]]) -> None:
    """However the tokens arrive: one by one, or several from a step."""
    sequence = make_sequence(prompt)
    lookup = PromptLookup()
    for piece in pieces:
        sequence.output_token_ids += piece
        tokens = sequence.tokens(0, sequence.num_tokens)
        starts = [start for start in range(len(tokens) - 3) if tokens[start : start + 3] == tokens[-3:]]
        expected = tokens[starts[-1] + 3 :][:1] if starts else []
        assert lookup.guess(sequence, 1) == expected
