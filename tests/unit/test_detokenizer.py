from functools import cache

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from deployments.engine.detokenizer import IncrementalDetokenizer
from deployments.token_bytes import TokenBytes
from tests.factories import IM_END_ID, make_byte_fallback_tokenizer, make_tokenizer

UNICODE = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from("aé한中日あ😀👩‍👧‍👦🇫🇷ñ\u0301\u0300\u05e9\u05dc\u0645\u0631\u062d\u202e\u200b\ufffd\ufeff \n\t"),
    ),
    max_size=40,
)
BYTES = st.lists(st.integers(0, 255), max_size=30)


@cache
def byte_level() -> tuple[Tokenizer, TokenBytes]:
    tokenizer = make_tokenizer()
    return tokenizer, TokenBytes(tokenizer)


@cache
def byte_fallback() -> tuple[Tokenizer, TokenBytes]:
    tokenizer = make_byte_fallback_tokenizer()
    return tokenizer, TokenBytes(tokenizer)


def ids_of_bytes(values: list[int]) -> list[int]:
    token_bytes = byte_level()[1]
    by_bytes = {token_bytes.of(token_id): token_id for token_id in range(3, 259)}
    return [by_bytes[bytes([value])] for value in values]


@given(UNICODE)
def test_pieces_join_to_the_text_with_a_byte_level_vocabulary(text: str) -> None:
    tokenizer, token_bytes = byte_level()
    token_ids = tokenizer.encode(text).ids
    detokenizer = IncrementalDetokenizer(token_bytes)
    assert "".join(map(detokenizer.append, token_ids)) == text == tokenizer.decode(token_ids)


@given(UNICODE, UNICODE)
@example("the", " cat")
def test_pieces_continue_the_prompt_with_a_byte_fallback_vocabulary(prompt: str, output: str) -> None:
    tokenizer, token_bytes = byte_fallback()
    prompt_ids = tokenizer.encode("a" + prompt).ids
    output_ids = tokenizer.encode("a" + output).ids
    detokenizer = IncrementalDetokenizer(token_bytes, prompt_ids)
    whole = tokenizer.decode([*prompt_ids, *output_ids])
    assert tokenizer.decode(prompt_ids) + "".join(map(detokenizer.append, output_ids)) == whole


def test_the_leading_space_of_the_output_stays() -> None:
    tokenizer, token_bytes = byte_fallback()
    (the,) = tokenizer.encode("the").ids
    assert IncrementalDetokenizer(token_bytes, [the]).append(the) == " the"
    assert IncrementalDetokenizer(token_bytes).append(the) == " the"


@given(BYTES)
@example([0xE2, 0x80])
@example([0xF0, 0x9F, 0x41, 0x80])
@example([0xED, 0xA0, 0x80])
@example([0xF4, 0x90, 0x80, 0x80])
@example([0xC0, 0xAF, 0xEF, 0xBF, 0xBD])
def test_invalid_bytes_read_as_the_tokenizer_reads_them(values: list[int]) -> None:
    tokenizer, token_bytes = byte_level()
    token_ids = ids_of_bytes([*values, ord(".")])
    detokenizer = IncrementalDetokenizer(token_bytes)
    assert "".join(map(detokenizer.append, token_ids)) == tokenizer.decode(token_ids)


@given(UNICODE)
def test_no_character_comes_out_before_its_last_byte(text: str) -> None:
    detokenizer = IncrementalDetokenizer(byte_level()[1])
    content = text.encode()
    emitted = ""
    for index, token_id in enumerate(ids_of_bytes(list(content))):
        emitted += detokenizer.append(token_id)
        assert emitted == content[: index + 1].decode(errors="ignore")


def test_bytes_never_completed_never_come_out() -> None:
    detokenizer = IncrementalDetokenizer(byte_level()[1])
    assert [detokenizer.append(token_id) for token_id in ids_of_bytes([0x41, 0xF0, 0x9F, 0x98])] == ["A", "", "", ""]


def test_a_replacement_character_that_the_model_writes_comes_out_at_once() -> None:
    detokenizer = IncrementalDetokenizer(byte_level()[1])
    assert [detokenizer.append(token_id) for token_id in ids_of_bytes([0xEF, 0xBF, 0xBD])] == ["", "", "\ufffd"]


@pytest.mark.parametrize("num_in_prompt", [1, 2, 3])
def test_a_character_that_the_prompt_began_is_completed(num_in_prompt: int) -> None:
    token_ids = ids_of_bytes(list(" 😀".encode()))
    split = 1 + num_in_prompt
    detokenizer = IncrementalDetokenizer(byte_level()[1], token_ids[:split])
    assert "".join(map(detokenizer.append, token_ids[split:])) == "😀"


@given(UNICODE, st.integers(0, 40))
def test_feeding_earlier_tokens_again_brings_back_the_state(text: str, num_replayed: int) -> None:
    tokenizer, token_bytes = byte_level()
    token_ids = tokenizer.encode(text).ids
    first, second = IncrementalDetokenizer(token_bytes), IncrementalDetokenizer(token_bytes)
    pieces = [first.append(token_id) for token_id in token_ids]
    assert [second.append(token_id) for token_id in token_ids[:num_replayed]] == pieces[:num_replayed]
    assert [second.append(token_id) for token_id in token_ids[num_replayed:]] == pieces[num_replayed:]


@pytest.mark.parametrize(("is_skipped", "text"), [(True, ""), (False, "<|im_end|>")])
def test_special_tokens_are_left_out_on_request(is_skipped: bool, text: str) -> None:
    detokenizer = IncrementalDetokenizer(byte_level()[1], skip_special_tokens=is_skipped)
    assert detokenizer.append(IM_END_ID) == text


def test_an_id_that_the_tokenizer_does_not_know_adds_nothing() -> None:
    assert IncrementalDetokenizer(byte_level()[1]).append(100_000) == ""
