"""The text of a key: its form, its checksum, its randomness."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.use_cases.key_format import generate_key, parse_key

KEY = generate_key()
ALPHANUMERIC = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def test_generated_keys_parse_to_themselves() -> None:
    for _ in range(100):
        key = generate_key()
        assert parse_key(key.text) == key


def test_a_key_has_the_documented_form() -> None:
    prefix, key_id, secret = KEY.text.split("_")
    assert prefix == "tt"
    assert key_id == KEY.id
    assert (len(key_id), len(secret)) == (17, 49)
    assert (key_id + secret).isalnum()


def test_generated_keys_differ_in_id_and_secret() -> None:
    keys = [generate_key() for _ in range(100)]
    assert len({key.id for key in keys}) == 100
    assert len({key.text.split("_")[2] for key in keys}) == 100


@given(position=st.integers(0, len(KEY.text) - 1), letter=st.sampled_from(ALPHANUMERIC + "_"))
def test_one_mistyped_character_is_always_noticed(position: int, letter: str) -> None:
    mistyped = KEY.text[:position] + letter + KEY.text[position + 1 :]
    assert (parse_key(mistyped) is None) == (mistyped != KEY.text)


@given(position=st.integers(0, len(KEY.text) - 2))
def test_two_swapped_characters_are_always_noticed(position: int) -> None:
    first, second = KEY.text[position : position + 2]
    swapped = KEY.text[:position] + second + first + KEY.text[position + 2 :]
    assert (parse_key(swapped) is None) == (swapped != KEY.text)


@given(st.text())
def test_any_other_text_is_no_key(text: str) -> None:
    assert parse_key(text) is None


@pytest.mark.parametrize("around", ["{} ", " {}", "{}\n", "Bearer {}", "{}0", "\u0660{}"])
def test_text_around_a_key_is_not_ignored(around: str) -> None:
    assert parse_key(around.format(KEY.text)) is None


def test_the_representation_does_not_show_the_secret() -> None:
    assert KEY.id in repr(KEY)
    assert KEY.text not in repr(KEY)
