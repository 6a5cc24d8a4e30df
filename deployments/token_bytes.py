"""The bytes that each token of a vocabulary adds to a text. Knows no sequence and no model."""

import re

from tokenizers import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_ANCHOR_CANDIDATES = ("a", "e", "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}a", "\N{LOWER ONE EIGHTH BLOCK}a", "0")
_MAX_ANCHOR_SEARCH = 1024


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's stand-ins for the bytes: a printable Latin-1 character is itself, the others are shifted past 255."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    shifted = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(shifted)}


_BYTE_LEVEL_ALPHABET = _byte_level_alphabet()


class TokenBytes:
    """What each token of `tokenizer` stands for in the middle of a text, computed when first asked for.

    A token need not be whole characters: byte-level vocabularies and byte-fallback tokens cut a character anywhere.
    Joining the bytes of a text's tokens and decoding them as UTF-8 gives the text, whatever the tokenizer's decoder
    does at the beginning of a text. Made once for a vocabulary; safe to share between threads.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special_ids = frozenset(
            token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special
        )
        self._bytes: dict[int, bytes] = {}
        self._texts: dict[int, str] = {}
        self._anchor_id, self._before, self._after = self._find_anchor()

    def is_special(self, token_id: int) -> bool:
        """Whether the token is left out of a text that skips special tokens."""
        return token_id in self._special_ids

    def of(self, token_id: int) -> bytes:
        """The token's bytes; none for an id that the tokenizer does not know."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._find_bytes(token_id)
        return known

    def text(self, token_id: int) -> str:
        """The token on its own, printable, for lists of log-probabilities.

        Bytes that are no whole characters are written as OpenAI's API writes them, `bytes:\\xe2\\x80`; an id without
        text as `token_id:50000`. So texts of different tokens differ, but for the few that truly spell the same.
        """
        known = self._texts.get(token_id)
        if known is None:
            known = self._texts[token_id] = self._find_text(token_id)
        return known

    def _find_anchor(self) -> tuple[int | None, str, str]:
        """A token of plain text, what it reads at the beginning of a text, and what it reads after another token.

        The anchors on both sides of a token keep decoders from treating it as the first or the last of a text.
        """
        candidates = [self._tokenizer.token_to_id(token) for token in _ANCHOR_CANDIDATES]
        candidates.extend(range(min(self._tokenizer.get_vocab_size(), _MAX_ANCHOR_SEARCH)))
        for token_id in candidates:
            if token_id is None or token_id in self._special_ids:
                continue
            once, twice = self._decode(token_id), self._decode(token_id, token_id)
            if once.isalnum() and once.isascii() and twice.startswith(once):
                return token_id, once, twice.removeprefix(once)
        return None, "", ""

    def _decode(self, *token_ids: int) -> str:
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=False)

    def _find_bytes(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        text = self._decoded_in_context(token_id)
        if _REPLACEMENT not in text:
            return text.encode()
        if byte_token := _BYTE_TOKEN.fullmatch(token):
            return bytes([int(byte_token[1], 16)])
        if all(character in _BYTE_LEVEL_ALPHABET for character in token):
            return bytes(_BYTE_LEVEL_ALPHABET[character] for character in token)
        return text.encode()

    def _decoded_in_context(self, token_id: int) -> str:
        if self._anchor_id is not None:
            text = self._decode(self._anchor_id, token_id, self._anchor_id)
            if text.startswith(self._before) and text.endswith(self._after):
                return text[len(self._before) : len(text) - len(self._after)]
        return self._decode(token_id)

    def _find_text(self, token_id: int) -> str:
        content = self.of(token_id)
        if not content:
            return f"token_id:{token_id}"
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(
                chr(byte) if 0x20 <= byte < 0x7F and byte != 0x5C else f"\\x{byte:02x}" for byte in content
            )
