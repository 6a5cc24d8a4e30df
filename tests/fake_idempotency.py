"""Idempotent requests in memory."""

import asyncio

from deployments.errors import Conflict, IdempotencyMismatch
from serve_app.use_cases.idempotency import KeptAnswer


class FakeIdempotentRequests:
    """Nothing expires and no process dies. `kept` can be looked at: None while a request runs.

    error: raised by `finish` and `abandon` while it is set. begin_error: by `begin`, once its effect took place.
    committing: cleared, `begin` waits for it once its effect took place.
    """

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], KeptAnswer | None] = {}
        self.error: Exception | None = None
        self.begin_error: Exception | None = None
        self.begun = asyncio.Event()
        self.committing = asyncio.Event()
        self.committing.set()
        self._fingerprints: dict[tuple[str, str], bytes] = {}

    async def begin(self, account: str, key: str, fingerprint: bytes) -> KeptAnswer | None:
        place = (account, key)
        if self._fingerprints.setdefault(place, fingerprint) != fingerprint:
            raise IdempotencyMismatch("the idempotency key was used for another request")
        if place not in self.kept:
            self.kept[place] = None
            self.begun.set()
            await self.committing.wait()
            if self.begin_error is not None:
                raise self.begin_error
            return None
        answer = self.kept[place]
        if answer is None:
            raise Conflict("a request with this idempotency key is running")
        return answer

    async def finish(self, account: str, key: str, answer: KeptAnswer) -> None:
        if self.error is not None:
            raise self.error
        self.kept[account, key] = answer

    async def abandon(self, account: str, key: str) -> None:
        if self.error is not None:
            raise self.error
        self.kept.pop((account, key), None)
        self._fingerprints.pop((account, key), None)
