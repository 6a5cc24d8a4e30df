"""Secrets of webhooks where they are stored: readable to sign with, by this service only."""

import hmac
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE_BYTES = 12


class UnreadableSecret(Exception):
    """It was sealed under another pepper, or for another endpoint."""


class SealedSecrets:
    """Sealed by AES-256-GCM under a key that is derived from `pepper`, and bound to the endpoint's id."""

    def __init__(self, pepper: bytes) -> None:
        self._cipher = AESGCM(hmac.digest(pepper, b"secrets of webhook endpoints", "sha256"))

    def seal(self, endpoint_id: str, secret: str) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, secret.encode(), endpoint_id.encode())

    def open(self, endpoint_id: str, sealed: bytes) -> str:
        """Raises UnreadableSecret."""
        nonce, body = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            return self._cipher.decrypt(nonce, body, endpoint_id.encode()).decode()
        except (InvalidTag, ValueError):
            raise UnreadableSecret from None
