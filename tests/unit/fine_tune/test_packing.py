"""Packing: every position in exactly one sequence, none too long, and hardly any room left over."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from deployments.fine_tune.packing import Piece, pack, split

LENGTHS = st.lists(st.integers(0, 60), max_size=60)
CAPACITY = st.integers(1, 40)


@given(LENGTHS, CAPACITY)
def test_pieces_are_the_documents_in_order_and_fit(lengths: list[int], capacity: int) -> None:
    pieces = split(lengths, capacity)

    positions = [(piece.document, place) for piece in pieces for place in range(piece.start, piece.end)]
    assert positions == [(number, place) for number, length in enumerate(lengths) for place in range(length)]
    assert all(1 <= len(piece) <= capacity for piece in pieces)


@given(LENGTHS, CAPACITY)
def test_no_more_pieces_than_needed(lengths: list[int], capacity: int) -> None:
    assert len(split(lengths, capacity)) == sum(-(-length // capacity) for length in lengths)


@given(LENGTHS, CAPACITY)
def test_each_piece_is_in_one_sequence_that_holds_it(lengths: list[int], capacity: int) -> None:
    pieces = split(lengths, capacity)
    sequences = pack(pieces, capacity)

    assert sorted((piece for sequence in sequences for piece in sequence), key=order) == sorted(pieces, key=order)
    assert all(0 < sum(map(len, sequence)) <= capacity for sequence in sequences)


@given(LENGTHS, CAPACITY)
def test_no_two_sequences_would_fit_into_one(lengths: list[int], capacity: int) -> None:
    filled = sorted(sum(map(len, sequence)) for sequence in pack(split(lengths, capacity), capacity))

    assert all(first + second > capacity for first, second in pairwise(filled))


def test_a_piece_goes_where_the_least_room_is_left() -> None:
    pieces = split([9, 6, 1, 4], 10)

    assert [[len(piece) for piece in sequence] for sequence in pack(pieces, 10)] == [[9, 1], [6, 4]]


def order(piece: Piece) -> tuple[int, int]:
    return piece.document, piece.start
