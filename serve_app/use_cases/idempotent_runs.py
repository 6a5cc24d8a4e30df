"""Begins and ends idempotent requests whole, though clients leave and the store fails. Knows no HTTP and no SQL."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from deployments.errors import Conflict, StorageError
from serve_app.use_cases.idempotency import IdempotentRequests, KeptAnswer

T = TypeVar("T")
Place = tuple[str, str]
"""An account and its idempotency key."""

_ATTEMPTS = 5
_RETRY_S = 1.0

_logger = logging.getLogger(__name__)


class IdempotentRuns:
    """As `IdempotentRequests`, but nothing is left half done by whoever stops waiting.

    `finish` and `abandon` raise nothing: what the store refuses is tried again in the background, a few times; then
    the key stays taken until this process ends.
    """

    def __init__(self, requests: IdempotentRequests, *, retry_s: float = _RETRY_S) -> None:
        self._requests = requests
        self._retry_s = retry_s
        # The store tells processes apart, not the requests of one: what is abandoned must not have begun anew.
        self._abandoning: set[Place] = set()
        self._locks: WeakValueDictionary[Place, asyncio.Lock] = WeakValueDictionary()
        self._background: set[asyncio.Task[Any]] = set()

    async def begin(self, account: str, key: str, fingerprint: bytes) -> KeptAnswer | None:
        """As the store's; where it is cancelled, or the store loses its answer, the request is abandoned."""
        place = (account, key)
        task = self._keep(self._begin(place, fingerprint))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._keep(self._undo(task, place))
            raise

    async def finish(self, account: str, key: str, answer: KeptAnswer) -> None:
        """Returns after the first attempt."""
        tried = asyncio.Event()
        self._keep(self._persist(lambda: self._requests.finish(account, key, answer), tried))
        await tried.wait()

    async def abandon(self, account: str, key: str) -> None:
        """Returns after the first attempt."""
        tried = asyncio.Event()
        self._start_abandoning((account, key), tried)
        await tried.wait()

    async def to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` answers; where the caller is cancelled it goes on, and the caller ends after it, since what the
        caller holds is in use until then."""
        task = self._keep(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait({task})
            raise

    async def _begin(self, place: Place, fingerprint: bytes) -> KeptAnswer | None:
        async with self._lock(place):
            if place in self._abandoning:
                raise Conflict("the last request with this idempotency key is still ending; send it again later")
            try:
                return await self._requests.begin(*place, fingerprint)
            except StorageError:
                self._start_abandoning(place, asyncio.Event())
                raise

    async def _undo(self, begun: "asyncio.Task[KeptAnswer | None]", place: Place) -> None:
        await asyncio.wait({begun})
        if not begun.cancelled() and begun.exception() is None and begun.result() is None:
            await self.abandon(*place)

    def _start_abandoning(self, place: Place, tried: asyncio.Event) -> None:
        self._abandoning.add(place)
        self._keep(self._abandon(place, tried))

    async def _abandon(self, place: Place, tried: asyncio.Event) -> None:
        async def work() -> None:
            async with self._lock(place):
                await self._requests.abandon(*place)

        try:
            await self._persist(work, tried)
        finally:
            self._abandoning.discard(place)

    async def _persist(self, work: Callable[[], Awaitable[None]], tried: asyncio.Event) -> None:
        for attempt in range(_ATTEMPTS):
            if attempt:
                await asyncio.sleep(self._retry_s)
            try:
                await work()
            except Exception as error:
                _logger.error("an idempotent request is not closed yet: %s", type(error).__name__)
            else:
                return
            finally:
                tried.set()
        _logger.error("an idempotent request could not be closed; its key stays taken until this process ends")

    def _lock(self, place: Place) -> asyncio.Lock:
        return self._locks.setdefault(place, asyncio.Lock())

    def _keep(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Tasks that nobody awaits would be forgotten by the event loop."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: "asyncio.Task[Any]") -> None:
        self._background.discard(task)
        if not task.cancelled():
            task.exception()  # told to the client, where it is still there
