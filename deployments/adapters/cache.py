"""The adapters of one engine, by what requests need. Runs on the event loop; knows no files and no tensors."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from deployments.config import AdapterCacheConfig
from deployments.engine.protocol import LoadedAdapter
from deployments.errors import InvalidAdapter, Overloaded
from deployments.types import AdapterRef

ROOM_WAIT_S = 30.0
"""How long a request waits for room on the device while all that is there is in use."""

logger = logging.getLogger(__name__)


class AdapterEngine(Protocol):
    """What the cache asks of an engine; see `deployments.engine.protocol.Engine`."""

    async def load_adapter(self, adapter: LoadedAdapter) -> int: ...

    async def unload_adapter(self, adapter: AdapterRef) -> None: ...


@dataclass(slots=True, eq=False)
class _Entry:
    """An adapter on the device, or on its way there. users: requests that hold it. num_bytes: on the device."""

    ref: AdapterRef
    loading: "asyncio.Task[None]"
    users: int = 0
    num_bytes: int = 0


class AdapterCache:
    """Adapters are known by their digest: other content is another adapter, whatever its id.

    One load serves all requests that wait for it; it goes on when they leave, and what has failed is tried anew by the
    next. What a request uses stays; of the rest, what was used longest ago goes when there is no room.
    """

    def __init__(
        self,
        engine: AdapterEngine,
        read: Callable[[AdapterRef], LoadedAdapter],
        config: AdapterCacheConfig,
        *,
        room_wait_s: float = ROOM_WAIT_S,
    ) -> None:
        """`read` blocks, and is called in a thread."""
        self._engine = engine
        self._read = read
        self._config = config
        self._room_wait_s = room_wait_s
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._num_bytes = 0
        self._host: OrderedDict[str, tuple[LoadedAdapter, int]] = OrderedDict()
        self._host_bytes = 0
        self._released = asyncio.Event()
        # Bytes on the device for each byte in memory: the same for every adapter of an engine, once one is loaded.
        self._density = 1.0

    @asynccontextmanager
    async def using(self, ref: AdapterRef) -> AsyncGenerator[None, None]:
        """Within it the engine takes requests for the adapter.

        Raises InvalidAdapter, CorruptObject, ObjectStoreError; Overloaded where adapters that are in use leave no room
        for too long; EngineDead.
        """
        entry = self._entries.get(ref.digest)
        if entry is None:
            entry = _Entry(ref, asyncio.create_task(self._load(ref)))
            entry.loading.add_done_callback(self._loaded)
            self._entries[ref.digest] = entry
        entry.users += 1
        try:
            await asyncio.shield(entry.loading)
            yield
        finally:
            entry.users -= 1
            if self._entries.get(ref.digest) is entry:
                self._entries.move_to_end(ref.digest)
            self._released.set()

    async def stop(self) -> None:
        """Ends what is being loaded; those who wait for it are cancelled."""
        loads = [entry.loading for entry in self._entries.values()]
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)

    async def _load(self, ref: AdapterRef) -> None:
        reserved = 0
        try:
            adapter, host_bytes = await self._in_memory(ref)
            needed = int(host_bytes * self._density)
            await self._make_room(needed)
            self._num_bytes += needed
            reserved = needed
            num_bytes = await self._engine.load_adapter(adapter)
            self._density = num_bytes / max(host_bytes, 1)
            self._num_bytes += num_bytes - reserved
            self._entries[ref.digest].num_bytes = reserved = num_bytes
            if num_bytes > self._config.device_bytes:
                await self._engine.unload_adapter(ref)
                raise InvalidAdapter(
                    f"the adapter takes {num_bytes} bytes, more than the {self._config.device_bytes} for all adapters"
                )
        except BaseException as error:
            self._num_bytes -= reserved
            del self._entries[ref.digest]
            if not isinstance(error, asyncio.CancelledError):
                logger.warning("the adapter %s could not be loaded: %s", ref.id, type(error).__name__)
            raise

    def _loaded(self, loading: "asyncio.Task[None]") -> None:
        """Whether it succeeded is told to those who wait for it, if there still are any."""
        if not loading.cancelled():
            loading.exception()
        self._released.set()

    async def _in_memory(self, ref: AdapterRef) -> tuple[LoadedAdapter, int]:
        """The adapter and its bytes, from memory or read into it."""
        if ref.digest in self._host:
            self._host.move_to_end(ref.digest)
            return self._host[ref.digest]
        adapter = await asyncio.to_thread(self._read, ref)
        num_bytes = sum(pair.a.nbytes + pair.b.nbytes for pair in adapter.pairs.values())
        self._host[ref.digest] = adapter, num_bytes
        self._host_bytes += num_bytes
        while self._host_bytes > self._config.host_bytes:
            _, (_, gone) = self._host.popitem(last=False)
            self._host_bytes -= gone
        return adapter, num_bytes

    async def _make_room(self, needed: int) -> None:
        """Returns when so much fits beside what is there, or where nothing else is. Raises Overloaded."""
        try:
            async with asyncio.timeout(self._room_wait_s):
                while self._num_bytes and self._num_bytes + needed > self._config.device_bytes:
                    self._released.clear()
                    if (unused := self._longest_unused()) is None:
                        await self._released.wait()
                        continue
                    del self._entries[unused.ref.digest]
                    self._num_bytes -= unused.num_bytes
                    await self._engine.unload_adapter(unused.ref)
        except TimeoutError:
            raise Overloaded("the adapters that are in use leave no room for another one; try again later") from None

    def _longest_unused(self) -> _Entry | None:
        for entry in self._entries.values():
            if entry.users == 0 and entry.loading.done():
                return entry
        return None
