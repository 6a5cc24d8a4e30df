from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models

from deployments.token_bytes import TokenBytes
from tests.factories import END_OF_TEXT_ID, make_byte_fallback_tokenizer, make_tokenizer


def text_of(tokenizer: Tokenizer, token: str) -> str:
    token_id = tokenizer.token_to_id(token)
    assert token_id is not None
    return TokenBytes(tokenizer).text(token_id)


@pytest.mark.parametrize("make", [make_tokenizer, make_byte_fallback_tokenizer])
def test_there_is_a_token_for_every_byte(make: Callable[[], Tokenizer]) -> None:
    tokenizer = make()
    token_bytes = TokenBytes(tokenizer)
    known = {token_bytes.of(token_id) for token_id in range(tokenizer.get_vocab_size())}
    assert known >= {bytes([value]) for value in range(256)}


@pytest.mark.parametrize(("piece", "text"), [("▁the", " the"), ("he", "he"), ("▁", " "), ("<0x0A>", "\n"), ("é", "é")])
def test_texts_of_a_byte_fallback_vocabulary_keep_their_space(piece: str, text: str) -> None:
    assert text_of(make_byte_fallback_tokenizer(), piece) == text


@pytest.mark.parametrize(
    ("token", "text"),
    [("\u0120the", " the"), ("\u00e2", "bytes:\\xe2"), ("\u0122", "bytes:\\x80"), ("\u010a", "\n"), ("\\", "\\")],
)
def test_bytes_that_are_no_characters_are_escaped(token: str, text: str) -> None:
    assert text_of(make_tokenizer(), token) == text


def test_an_escape_keeps_what_is_printable() -> None:
    token = "\u0120\\\u00e2"
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, token: 1}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    assert text_of(tokenizer, token) == "bytes: \\x5c\\xe2"


def test_the_text_of_every_token_is_its_own() -> None:
    tokenizer = make_tokenizer()
    token_bytes = TokenBytes(tokenizer)
    texts = {token_bytes.text(token_id) for token_id in range(tokenizer.get_vocab_size() + 10)}
    assert len(texts) == tokenizer.get_vocab_size() + 10


def test_special_tokens_are_known_and_spelled_out() -> None:
    token_bytes = TokenBytes(make_tokenizer())
    assert token_bytes.is_special(END_OF_TEXT_ID)
    assert not token_bytes.is_special(50)
    assert token_bytes.text(END_OF_TEXT_ID) == "<|endoftext|>"


def test_an_id_without_text_is_written_as_its_number() -> None:
    token_bytes = TokenBytes(make_tokenizer())
    assert token_bytes.of(100_000) == b""
    assert token_bytes.text(100_000) == "token_id:100000"
