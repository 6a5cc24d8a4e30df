"""The text of an API key: `tt_<id>_<secret><checksum>`. Pure; knows nothing of who owns a key.

The id (96 bits) is public: it is shown, logged and looked up. The secret has 256 random bits. The checksum lets a
mistyped key be told from a real one without asking anybody, and lets secret scanners be sure of a find.
"""

import re
import secrets
import zlib
from dataclasses import dataclass

PREFIX = "tt"

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID_BITS, _ID_LENGTH = 96, 17
_SECRET_BITS, _SECRET_LENGTH = 256, 43
_CHECKSUM_LENGTH = 6
_PATTERN = re.compile(rf"{PREFIX}_([0-9A-Za-z]{{{_ID_LENGTH}}})_[0-9A-Za-z]{{{_SECRET_LENGTH + _CHECKSUM_LENGTH}}}")


@dataclass(frozen=True, slots=True, repr=False)
class KeyText:
    """A well-formed key: its public id, and the whole text, which is secret."""

    id: str
    text: str

    def __repr__(self) -> str:
        return f"KeyText(id={self.id!r})"


def generate_key(key_id: str | None = None) -> KeyText:
    """A fresh key from the system's secure random numbers, with this id or a fresh one."""
    key_id = key_id or _base62(secrets.randbits(_ID_BITS), _ID_LENGTH)
    body = f"{PREFIX}_{key_id}_{_base62(secrets.randbits(_SECRET_BITS), _SECRET_LENGTH)}"
    return KeyText(key_id, body + _checksum(body))


def parse_key(text: str) -> KeyText | None:
    """The parts of a key, or None where the form or the checksum is wrong."""
    match = _PATTERN.fullmatch(text)
    if match is None or _checksum(text[:-_CHECKSUM_LENGTH]) != text[-_CHECKSUM_LENGTH:]:
        return None
    return KeyText(match[1], text)


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode("ascii")), _CHECKSUM_LENGTH)


def _base62(number: int, length: int) -> str:
    """The number in base 62, most significant digit first, filled up with zeros to `length`."""
    digits = []
    for _ in range(length):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
