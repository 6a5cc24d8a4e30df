"""Where a text ends: stop strings and the limit on characters. Pure: knows no tokens, only pieces of text."""

from collections.abc import Sequence
from dataclasses import dataclass

from deployments.types import FinishReason


class StopMatcher:
    """Finds one stop string in a text that arrives character by character (Knuth, Morris and Pratt)."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.num_matched = 0
        self._fallback = [0] * (len(stop) + 1)
        length = 0
        for position in range(1, len(stop)):
            while length and stop[position] != stop[length]:
                length = self._fallback[length]
            if stop[position] == stop[length]:
                length += 1
            self._fallback[position + 1] = length

    @property
    def num_possible(self) -> int:
        """How many of the last characters may still be the beginning of a stop string that is not complete."""
        return self._fallback[self.num_matched] if self.num_matched == len(self.stop) else self.num_matched

    def advance(self, character: str) -> bool:
        """Whether the stop string ends with this character. `num_matched` is how much of its beginning ends here."""
        matched = self.num_matched
        if matched == len(self.stop):
            matched = self._fallback[matched]
        while matched and self.stop[matched] != character:
            matched = self._fallback[matched]
        if self.stop[matched] == character:
            matched += 1
        self.num_matched = matched
        return matched == len(self.stop)


class StopChecker:
    """Holds back text that may turn out to be part of a stop string, and cuts at the first stop string that completes.

    Of several that complete with the same character, the longest counts. What comes out does not depend on how the
    text was cut into pieces. Never more than the longest stop string less one character is held back.
    """

    def __init__(self, stop: Sequence[str], *, include_stop_str_in_output: bool = False) -> None:
        self._matchers = [StopMatcher(text) for text in sorted(set(stop), key=len, reverse=True)]
        self._include_stop = include_stop_str_in_output
        self.held_back = ""
        self.matched: str | None = None

    def feed(self, text: str, *, is_searched: bool = True) -> str:
        """The text that is certain now. Once `matched` is set the text has ended.

        A stop string that completes inside text that is not searched does not count; one that begins there and
        completes later does.
        """
        if not self._matchers:
            return text
        held_back = self.held_back + text
        num_before = len(self.held_back)
        for index, character in enumerate(text):
            completed = [matcher.stop for matcher in self._matchers if matcher.advance(character)]
            if completed and is_searched:
                self.matched = completed[0]
                self.held_back = ""
                end = num_before + index + 1
                return held_back[: end if self._include_stop else end - len(self.matched)]
        num_held = max(matcher.num_possible for matcher in self._matchers)
        num_certain = len(held_back) - num_held
        self.held_back = held_back[num_certain:]
        return held_back[:num_certain]

    def flush(self) -> str:
        """The text held back; for the end of a text that no stop string ended."""
        text, self.held_back = self.held_back, ""
        return text


@dataclass(frozen=True, slots=True)
class LimitedText:
    """What one token's text led to.

    `is_kept`: whether the token belongs to the text; one that `max_characters` drops whole does not.
    """

    text: str
    is_kept: bool = True
    finish_reason: FinishReason | None = None
    stop_reason: str | None = None


class TextLimiter:
    """Ends a text at a stop string or at `max_characters` code points, token by token.

    Stop strings are not searched in the text of the first `min_tokens` tokens. A token whose text would overflow the
    limit is dropped whole; if there is no text before it, it is cut at the limit.
    """

    def __init__(
        self,
        *,
        stop: Sequence[str] = (),
        include_stop_str_in_output: bool = False,
        min_tokens: int = 0,
        max_characters: int | None = None,
    ) -> None:
        self._stop = StopChecker(stop, include_stop_str_in_output=include_stop_str_in_output)
        self._min_tokens = min_tokens
        self._max_characters = max_characters
        self._num_tokens = 0
        self._num_characters = 0

    def feed(self, text: str) -> LimitedText:
        """The text of the next token, "" if it completes no character. Not to be called once the text has ended."""
        self._num_tokens += 1
        held_back = self._stop.held_back
        certain = self._stop.feed(text, is_searched=self._num_tokens > self._min_tokens)
        stop_reason = self._stop.matched
        limit = self._max_characters
        if limit is not None:
            num_before = self._num_characters + len(held_back)
            num_after = self._num_characters + len(certain) + len(self._stop.held_back)
            if num_after > limit:
                self._stop.flush()
                if num_before:
                    return LimitedText(held_back, is_kept=False, finish_reason=FinishReason.LENGTH)
                return LimitedText(text[:limit], finish_reason=FinishReason.LENGTH)
            if num_after == limit and stop_reason is None:
                return LimitedText(certain + self._stop.flush(), finish_reason=FinishReason.LENGTH)
        self._num_characters += len(certain)
        if stop_reason is not None:
            return LimitedText(certain, finish_reason=FinishReason.STOP, stop_reason=stop_reason)
        return LimitedText(certain)

    def flush(self) -> str:
        """The text held back, for a sequence that something else ended."""
        return self._stop.flush()
