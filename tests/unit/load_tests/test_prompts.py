"""The texts of the benchmarks."""

import pytest

from load_tests.prompts import long_prompt


@pytest.mark.parametrize("length", [1, 3000, 3100])
def test_a_long_prompt_has_exactly_so_many_characters(length: int) -> None:
    assert len(long_prompt(3, length)) == length


def test_longer_prompts_of_a_number_go_on_where_shorter_ones_end_and_others_begin_otherwise() -> None:
    assert long_prompt(1, 3100).startswith(long_prompt(1, 3000))
    assert long_prompt(1, 100)[:3] != long_prompt(2, 100)[:3]
