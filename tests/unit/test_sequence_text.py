from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from deployments.engine.sequence_text import SequenceText, TextPiece
from deployments.errors import InvalidParameter
from deployments.token_bytes import TokenBytes
from deployments.types import FinishReason, SamplingParams
from tests.factories import IM_END_ID, make_tokenizer

TEXT = st.text(st.sampled_from("the sea😀é\nab "), max_size=30)
SAMPLING = st.builds(
    SamplingParams,
    stop=st.lists(st.text(st.sampled_from("the sea😀\n"), min_size=1, max_size=4), max_size=3).map(tuple),
    include_stop_str_in_output=st.booleans(),
    min_tokens=st.integers(0, 6),
    max_characters=st.one_of(st.none(), st.integers(1, 20)),
)


@cache
def vocabulary() -> tuple[Tokenizer, TokenBytes]:
    tokenizer = make_tokenizer()
    return tokenizer, TokenBytes(tokenizer)


def sequence_text(sampling: SamplingParams) -> SequenceText:
    return SequenceText(vocabulary()[1], (), sampling)


def portions(token_ids: list[int], cuts: list[int]) -> list[list[int]]:
    edges = [0, *sorted(min(position, len(token_ids)) for position in cuts), len(token_ids)]
    return [token_ids[start:end] for start, end in pairwise(edges)]


def read(text: SequenceText, parts: list[list[int]]) -> TextPiece:
    """All that comes of the parts, as one piece."""
    pieces: list[TextPiece] = []
    for part in parts:
        pieces.append(text.append(part))
        if pieces[-1].finish_reason is not None:
            break
    last = pieces[-1]
    rest = text.finish() if last.finish_reason is None else ""
    joined = "".join(piece.text for piece in pieces) + rest
    return replace(last, text=joined, num_tokens=sum(piece.num_tokens for piece in pieces))


@given(TEXT, SAMPLING, st.lists(st.integers(0, 30)))
def test_portions_do_not_matter(text: str, sampling: SamplingParams, cuts: list[int]) -> None:
    token_ids = vocabulary()[0].encode(text).ids
    whole = read(sequence_text(sampling), [token_ids])
    assert read(sequence_text(sampling), portions(token_ids, cuts)) == whole


@given(TEXT, SAMPLING, st.integers(0, 30))
def test_a_resumed_sequence_goes_on_as_if_nothing_had_happened(
    text: str, sampling: SamplingParams, num_delivered: int
) -> None:
    token_ids = vocabulary()[0].encode(text).ids
    first, rest = token_ids[:num_delivered], token_ids[num_delivered:]
    original = sequence_text(sampling)
    if original.append(first).finish_reason is not None:
        return
    resumed = sequence_text(sampling)
    resumed.append(first)
    assert read(resumed, [rest]) == read(original, [rest])


@given(TEXT)
def test_without_limits_the_text_is_that_of_the_tokens(text: str) -> None:
    token_ids = vocabulary()[0].encode(text).ids
    assert read(sequence_text(SamplingParams()), [token_ids]) == TextPiece(text, len(token_ids))


def test_tokens_after_a_stop_string_are_not_taken() -> None:
    token_ids = vocabulary()[0].encode("one. two. three").ids
    piece = sequence_text(SamplingParams(stop=("two",))).append(token_ids)
    assert piece.text == "one. "
    assert piece.finish_reason is FinishReason.STOP
    assert piece.stop_reason == "two"
    assert vocabulary()[0].decode(token_ids[: piece.num_tokens]).endswith("two")


def test_an_end_token_is_shown_only_with_special_tokens() -> None:
    assert sequence_text(SamplingParams()).append([IM_END_ID]) == TextPiece("", 1)
    assert sequence_text(SamplingParams(skip_special_tokens=False)).append([IM_END_ID]) == TextPiece("<|im_end|>", 1)


def test_without_detokenizing_there_is_no_text() -> None:
    text = sequence_text(SamplingParams(detokenize=False))
    assert text.append([5, 6, 7]) == TextPiece("", 3)
    assert text.finish() == ""


@pytest.mark.parametrize(
    ("sampling", "param"),
    [
        (SamplingParams(stop=("a", "")), "stop"),
        (SamplingParams(detokenize=False, stop=("a",)), "stop"),
        (SamplingParams(detokenize=False, max_characters=5), "max_characters"),
    ],
)
def test_what_cannot_be_done_is_refused(sampling: SamplingParams, param: str) -> None:
    with pytest.raises(InvalidParameter) as error:
        sequence_text(sampling)
    assert error.value.param == param
