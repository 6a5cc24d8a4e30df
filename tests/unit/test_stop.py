from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deployments.engine.stop import StopChecker, TextLimiter
from deployments.types import FinishReason

TEXT = st.text("ab€", max_size=30)
STOPS = st.lists(st.text("ab€", min_size=1, max_size=5), max_size=4)


@dataclass(frozen=True)
class Outcome:
    text: str
    matched: str | None


def naive(text: str, stops: list[str], *, include: bool, num_protected: int = 0) -> Outcome:
    """By the definition: the stop string that ends first, of those the longest, ending after the protected text."""
    for end in range(num_protected + 1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            matched = max(found, key=len)
            return Outcome(text[: end if include else end - len(matched)], matched)
    return Outcome(text, None)


def cut(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(min(position, len(text)) for position in cuts), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


@given(TEXT, STOPS, st.lists(st.integers(0, 30)), st.booleans())
@example("aab", ["aab"], [1, 2], False)
@example("aaab", ["aab"], [2, 3], False)
@example("abab€", ["abab", "bab€"], [], False)
def test_any_cutting_gives_what_a_search_of_the_whole_text_gives(
    text: str, stops: list[str], cuts: list[int], include: bool
) -> None:
    checker = StopChecker(stops, include_stop_str_in_output=include)
    emitted = ""
    for piece in cut(text, cuts):
        emitted += checker.feed(piece)
        if checker.matched is not None:
            break
    else:
        emitted += checker.flush()
    assert Outcome(emitted, checker.matched) == naive(text, stops, include=include)


@given(TEXT, STOPS, st.lists(st.integers(0, 30)))
def test_only_the_beginning_of_a_stop_string_is_held_back(text: str, stops: list[str], cuts: list[int]) -> None:
    checker = StopChecker(stops)
    seen = emitted = ""
    for piece in cut(text, cuts):
        seen += piece
        emitted += checker.feed(piece)
        if checker.matched is not None:
            return
        beginnings = [stop[:length] for stop in stops for length in range(1, len(stop))]
        longest = max((len(start) for start in beginnings if seen.endswith(start)), default=0)
        assert emitted == seen[: len(seen) - longest]
        assert checker.held_back == seen[len(seen) - longest :]


def test_a_stop_string_that_does_not_come_is_let_go() -> None:
    checker = StopChecker(["###"])
    assert [checker.feed(piece) for piece in ("a#", "#", "b", "##")] == ["a", "", "##b", ""]
    assert checker.flush() == "##"
    assert checker.flush() == ""


def test_the_longer_of_two_that_end_together_counts() -> None:
    checker = StopChecker(["b", "ab"])
    assert checker.feed("xab") == "x"
    assert checker.matched == "ab"


def feed_all(limiter: TextLimiter, pieces: list[str]) -> tuple[str, int, FinishReason | None, str | None]:
    """Text, kept tokens, reason and stop string; the rest of the text where nothing ended it."""
    text = ""
    for index, piece in enumerate(pieces):
        limited = limiter.feed(piece)
        text += limited.text
        if limited.finish_reason is not None:
            return text, index + limited.is_kept, limited.finish_reason, limited.stop_reason
    return text + limiter.flush(), len(pieces), None, None


@given(st.lists(TEXT, max_size=8), STOPS.filter(bool), st.integers(0, 8))
@example(["aa", "a"], ["aa"], 1)
@example(["aa", "b"], ["aa"], 1)
@example(["a", "b"], ["ab"], 1)
def test_a_stop_string_must_end_after_the_first_min_tokens_tokens(
    pieces: list[str], stops: list[str], min_tokens: int
) -> None:
    text, _, _, matched = feed_all(TextLimiter(stop=stops, min_tokens=min_tokens), pieces)
    num_protected = len("".join(pieces[:min_tokens]))
    assert Outcome(text, matched) == naive("".join(pieces), stops, include=False, num_protected=num_protected)


@pytest.mark.parametrize(
    ("pieces", "limit", "expected"),
    [
        (["ab", "cd"], 5, ("abcd", 2, None, None)),
        (["ab", "cd", "e"], 4, ("abcd", 2, FinishReason.LENGTH, None)),
        (["ab", "cd"], 3, ("ab", 1, FinishReason.LENGTH, None)),
        (["abcd"], 3, ("abc", 1, FinishReason.LENGTH, None)),
        (["", "abcd"], 3, ("abc", 2, FinishReason.LENGTH, None)),
        (["a😀", "b"], 2, ("a😀", 1, FinishReason.LENGTH, None)),
        (["ab#", "cd"], 4, ("ab#", 1, FinishReason.LENGTH, None)),
        (["ab#"], 3, ("ab#", 1, FinishReason.LENGTH, None)),
        (["ab", "##"], 3, ("ab", 2, FinishReason.STOP, "##")),
        (["ab##"], 2, ("ab", 1, FinishReason.STOP, "##")),
        (["ab", "##"], 2, ("ab", 1, FinishReason.LENGTH, None)),
        (["abcd##"], 3, ("abc", 1, FinishReason.LENGTH, None)),
        (["#", "#a"], 3, ("", 2, FinishReason.STOP, "##")),
    ],
)
def test_the_limit_on_characters(pieces: list[str], limit: int, expected: tuple[object, ...]) -> None:
    assert feed_all(TextLimiter(stop=["##"], max_characters=limit), pieces) == expected


@given(st.lists(TEXT, max_size=8), STOPS, st.integers(1, 20), st.booleans())
def test_the_text_never_exceeds_the_limit_and_is_its_tokens_texts(
    pieces: list[str], stops: list[str], limit: int, include: bool
) -> None:
    limiter = TextLimiter(stop=stops, include_stop_str_in_output=include, max_characters=limit)
    text, num_kept, reason, _ = feed_all(limiter, pieces)
    assert len(text) <= limit
    assert "".join(pieces[:num_kept]).startswith(text)
    if reason is None:
        assert text == "".join(pieces)
    is_first_text = not "".join(pieces[: num_kept - 1])
    if reason is FinishReason.LENGTH:
        assert text == ("".join(pieces[:num_kept])[:limit] if is_first_text else "".join(pieces[:num_kept]))
