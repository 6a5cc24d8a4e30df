"""Token ids to text, one at a time, in whole code points. Knows no stop strings and no limits."""

import codecs
from collections.abc import Sequence

from deployments.token_bytes import TokenBytes

_MAX_UTF8_BYTES = 4


class IncrementalDetokenizer:
    """The text of one sequence, as it grows.

    A code point comes out with the token that completes it; bytes that begin one and are never completed never come
    out. Bytes that cannot be UTF-8 become U+FFFD, as in the tokenizer's own decoding. A space at the beginning of
    the output stays, since the output continues the prompt. The same tokens always give the same pieces, so feeding
    a resumed sequence its earlier tokens brings back its state. Each token costs constant time.
    """

    def __init__(
        self, token_bytes: TokenBytes, prompt_token_ids: Sequence[int] = (), *, skip_special_tokens: bool = True
    ) -> None:
        self._token_bytes = token_bytes
        self._skip_special_tokens = skip_special_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token_id in prompt_token_ids[-(_MAX_UTF8_BYTES - 1) :]:
            self.append(token_id)

    def append(self, token_id: int) -> str:
        """The code points that this token completes; often one word, sometimes nothing."""
        if self._skip_special_tokens and self._token_bytes.is_special(token_id):
            return ""
        return self._decoder.decode(self._token_bytes.of(token_id))
