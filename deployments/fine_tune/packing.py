"""Which pieces of which documents share a sequence. Bookkeeping only: no tokens, no tensors, no randomness."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """Positions `start` to `end` of the document with this index."""

    document: int
    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


def split(lengths: Sequence[int], capacity: int) -> list[Piece]:
    """The documents as pieces of at most `capacity`, in order. A long one gives full pieces and the rest of it."""
    return [
        Piece(document, start, min(start + capacity, length))
        for document, length in enumerate(lengths)
        for start in range(0, length, capacity)
    ]


def pack(pieces: Sequence[Piece], capacity: int) -> list[list[Piece]]:
    """Puts every piece into one sequence of at most `capacity`: the longest first, each where the least room is left.

    Best fit by decreasing length needs at most 11/9 of the fewest possible sequences and one more. The same pieces
    always give the same sequences.
    """
    sequences: list[list[Piece]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    # Bit n is set while some sequence has room for exactly n more.
    rooms = 0
    for piece in sorted(pieces, key=len, reverse=True):
        fitting = rooms >> len(piece)
        if fitting:
            room = len(piece) + (fitting & -fitting).bit_length() - 1
            sequence = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
            sequences[sequence].append(piece)
        else:
            room, sequence = capacity, len(sequences)
            sequences.append([piece])
        room -= len(piece)
        with_room[room].append(sequence)
        rooms |= 1 << room
    return sequences
