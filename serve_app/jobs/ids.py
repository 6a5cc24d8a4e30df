"""Ids of what the service keeps for its clients: a prefix, then small letters and digits."""

import secrets
import string

_ALPHABET = string.ascii_lowercase + string.digits


def new_id(prefix: str, length: int) -> str:
    """One that nobody can guess: `length` characters from the system's secure random numbers."""
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(length))
