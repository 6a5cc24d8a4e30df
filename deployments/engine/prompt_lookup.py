"""Guesses how a sequence goes on by looking its last tokens up earlier in it. Pure bookkeeping: no torch, no clock.

Text that quotes its prompt or repeats itself goes on as it did the last time. The model checks several guesses in one
step, which costs little more than a step without: while only few sequences run, a step's time is that of reading the
weights. A guess never changes what is generated, only in how many steps.

The idea: A. Saxena, "Prompt lookup decoding", 2023. The lengths of guesses adapt: each sequence earns them.
"""

from deployments.engine.sequence import Sequence

# Fewer tokens find more and are right less often.
_MATCHED_TOKENS = 3
_MOST_GUESSES = 8
_FIRST_GUESSES = 2
_FIRST_PAUSE = 4
_LONGEST_PAUSE = 64


class PromptLookup:
    """Guesses for the sequences that generate. What it keeps of a sequence grows by one entry for each token."""

    def __init__(self) -> None:
        self._histories: dict[int, _History] = {}

    def guess(self, sequence: Sequence, most: int) -> list[int]:
        """Up to `most` tokens that may follow the sequence's last token; none where guessing has not paid lately."""
        history = self._histories.get(sequence.key)
        if history is None:
            history = self._histories[sequence.key] = _History()
        return history.guess(sequence, most)

    def learn(self, sequence: Sequence, num_guessed: int, num_right: int) -> None:
        """How many of the sequence's last guesses were right."""
        self._histories[sequence.key].learn(sequence.num_tokens, num_guessed, num_right)

    def forget(self, sequence: Sequence) -> None:
        self._histories.pop(sequence.key, None)


class _History:
    """Where each run of tokens of a sequence was met last, and how well guessing went."""

    __slots__ = ("_after", "_num_followed", "_num_guesses", "_num_misses", "_quiet_until")

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}
        self._num_followed = _MATCHED_TOKENS
        self._num_guesses = _FIRST_GUESSES
        self._num_misses = 0
        self._quiet_until = 0

    def guess(self, sequence: Sequence, most: int) -> list[int]:
        end = sequence.num_tokens
        most = min(most, self._num_guesses)
        if end < self._quiet_until or end <= _MATCHED_TOKENS or most < 1:
            return []
        self._follow(sequence)
        start = self._after.get(tuple(sequence.tokens(end - _MATCHED_TOKENS, end)))
        if start is None:
            return []
        found = sequence.tokens(start, min(start + most, end))
        # What was found may be so near that it reaches the end: then it repeats.
        return [found[index % len(found)] for index in range(most)]

    def learn(self, num_tokens: int, num_guessed: int, num_right: int) -> None:
        if num_right == num_guessed:
            self._num_guesses = min(2 * self._num_guesses, _MOST_GUESSES)
        else:
            self._num_guesses = max(num_right, 1)
        self._num_misses = 0 if num_right else self._num_misses + 1
        if self._num_misses >= 2:
            self._quiet_until = num_tokens + min(_FIRST_PAUSE << (self._num_misses - 2), _LONGEST_PAUSE)

    def _follow(self, sequence: Sequence) -> None:
        """Takes in all tokens but the last: what ends with that is what is looked for."""
        first, end = self._num_followed, sequence.num_tokens
        tokens = sequence.tokens(first - _MATCHED_TOKENS, end - 1)
        for position in range(first, end):
            offset = position - first
            self._after[tuple(tokens[offset : offset + _MATCHED_TOKENS])] = position
        self._num_followed = max(first, end)
