"""Requests that a client may send again under one key: they take effect once. Knows no HTTP and no SQL."""

from dataclasses import dataclass
from typing import Protocol

KEPT_FOR_S = 24 * 3600.0
"""How long an answer is kept, in seconds."""


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
