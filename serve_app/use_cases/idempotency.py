"""Requests that a client may send again under one key: they take effect once. Knows no HTTP and no SQL."""

import hmac
import secrets
from dataclasses import dataclass, replace
from typing import Protocol

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEPT_FOR_S = 24 * 3600.0
"""How long an answer is kept, in seconds."""

_NONCE_BYTES = 12


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """A whole answer, as it was sent."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class IdempotentRequests(Protocol):
    """The requests of the last `KEPT_FOR_S` seconds by account and key, known to all processes."""

    async def begin(self, account: str, key: str, fingerprint: bytes) -> KeptAnswer | None:
        """The answer that this request had already; None: whoever asks runs it, and must finish or abandon it.

        `fingerprint` tells one request from another. A request whose process died may be begun again.
        Raises Conflict while the request runs, IdempotencyMismatch where the key was used for another one.
        """

    async def finish(self, account: str, key: str, answer: KeptAnswer) -> None:
        """Keeps the answer; returns once it outlives a crash."""

    async def abandon(self, account: str, key: str) -> None:
        """Forgets a request that took no effect or whose answer is not kept: it may be begun again."""


class SealedAnswers:
    """Idempotent requests whose answers are unreadable where they are stored.

    They hold generated text and new keys, which are otherwise stored nowhere. Sealed by AES-256-GCM under a key that
    is derived from `secret`, and bound to account and idempotency key.
    """

    def __init__(self, requests: IdempotentRequests, secret: bytes) -> None:
        self._requests = requests
        self._cipher = AESGCM(hmac.digest(secret, b"answers of idempotent requests", "sha256"))

    async def begin(self, account: str, key: str, fingerprint: bytes) -> KeptAnswer | None:
        sealed = await self._requests.begin(account, key, fingerprint)
        if sealed is None:
            return None
        nonce, body = sealed.body[:_NONCE_BYTES], sealed.body[_NONCE_BYTES:]
        return replace(sealed, body=self._cipher.decrypt(nonce, body, _place(account, key)))

    async def finish(self, account: str, key: str, answer: KeptAnswer) -> None:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        body = nonce + self._cipher.encrypt(nonce, answer.body, _place(account, key))
        await self._requests.finish(account, key, replace(answer, body=body))

    async def abandon(self, account: str, key: str) -> None:
        await self._requests.abandon(account, key)


def _place(account: str, key: str) -> bytes:
    return f"{account}\n{key}".encode()
