"""Ids of what the service keeps for its clients: a prefix, then small letters and digits."""

import base64
import hashlib
import secrets
import string

_ALPHABET = string.ascii_lowercase + string.digits


def new_id(prefix: str, length: int) -> str:
    """One that nobody can guess: `length` characters from the system's secure random numbers."""
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(length))


def derived_id(prefix: str, length: int, name: bytes) -> str:
    """The same for the same name; otherwise like `new_id`, for names that nobody can guess. length: 50 at most."""
    return prefix + base64.b32encode(hashlib.sha256(name).digest()).decode().lower()[:length]
