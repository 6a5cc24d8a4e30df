"""The text of one generated sequence: detokenizing, stop strings and the limit on characters together."""

from collections.abc import Sequence
from dataclasses import dataclass

from deployments.engine.detokenizer import IncrementalDetokenizer
from deployments.engine.stop import TextLimiter
from deployments.errors import InvalidParameter
from deployments.token_bytes import TokenBytes
from deployments.types import FinishReason, SamplingParams


@dataclass(frozen=True, slots=True)
class TextPiece:
    """What several new tokens add to the text.

    num_tokens: how many of them belong to the sequence; those after the end, or dropped at it, do not.
    finish_reason: set if the text ended here; then `stop_reason` is the stop string, if it was one.
    """

    text: str
    num_tokens: int
    finish_reason: FinishReason | None = None
    stop_reason: str | None = None


class SequenceText:
    """Turns the tokens of one sequence into text, and says when the text ends the sequence.

    The same tokens, in whatever portions, give the same text and the same end. To resume a sequence, append the tokens
    that were answered before and throw their text away: what was held back then is held back again.
    """

    def __init__(self, token_bytes: TokenBytes, prompt_token_ids: Sequence[int], sampling: SamplingParams) -> None:
        """Raises InvalidParameter: an empty stop string, or `detokenize` is off and something else needs the text."""
        if "" in sampling.stop:
            raise InvalidParameter("a stop string cannot be empty", "stop")
        self._detokenizer: IncrementalDetokenizer | None = None
        if sampling.detokenize:
            self._detokenizer = IncrementalDetokenizer(
                token_bytes, prompt_token_ids, skip_special_tokens=sampling.skip_special_tokens
            )
        elif sampling.stop:
            raise InvalidParameter("stop strings are found in text, so they need detokenize", "stop")
        elif sampling.max_characters is not None:
            raise InvalidParameter("a limit on characters needs detokenize", "max_characters")
        self._limiter = TextLimiter(
            stop=sampling.stop,
            include_stop_str_in_output=sampling.include_stop_str_in_output,
            min_tokens=sampling.min_tokens,
            max_characters=sampling.max_characters,
        )

    def append(self, token_ids: Sequence[int]) -> TextPiece:
        """The text that these tokens make certain. Not to be called once a piece had a finish reason."""
        if self._detokenizer is None:
            return TextPiece("", len(token_ids))
        pieces = []
        for index, token_id in enumerate(token_ids):
            limited = self._limiter.feed(self._detokenizer.append(token_id))
            pieces.append(limited.text)
            if limited.finish_reason is not None:
                num_tokens = index + 1 if limited.is_kept else index
                return TextPiece("".join(pieces), num_tokens, limited.finish_reason, limited.stop_reason)
        return TextPiece("".join(pieces), len(token_ids))

    def finish(self) -> str:
        """The rest of the text, once something else than the text has ended the sequence."""
        return self._limiter.flush()
