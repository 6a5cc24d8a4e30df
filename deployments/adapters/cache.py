"""The adapters of one engine, by what requests need. Runs on the event loop; knows no files and no tensors."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from deployments.adapters.memory import AdapterMemory
from deployments.config import AdapterCacheConfig
from deployments.engine.protocol import LoadedAdapter
from deployments.errors import EngineDead, InvalidAdapter, ObjectStoreError, Overloaded
from deployments.types import AdapterRef

LOAD_WAIT_S = 60.0
"""How long a request waits for its adapter in all; the object store may be silent."""

ROOM_WAIT_S = 30.0
"""How long a request waits for room on the device while all that is there is in use."""

_MAX_READS = 16
_STOPPED = "the generator was stopped"

logger = logging.getLogger(__name__)


class AdapterEngine(Protocol):
    """What the cache asks of an engine; see `deployments.engine.protocol.Engine`."""

    @property
    def is_on_host(self) -> bool: ...

    def adapter_bytes(self, adapter: LoadedAdapter) -> int: ...

    async def load_adapter(self, adapter: LoadedAdapter) -> None: ...

    async def unload_adapter(self, adapter: AdapterRef) -> None: ...


@dataclass(slots=True, eq=False)
class _Entry:
    """An adapter on the device, or on its way there. users: requests that hold it. num_bytes: of the device, its own
    from when it has its place there."""

    ref: AdapterRef
    loading: "asyncio.Task[None]" = field(init=False)
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
        load_wait_s: float = LOAD_WAIT_S,
        room_wait_s: float = ROOM_WAIT_S,
    ) -> None:
        """`read` blocks, and is called in a thread; up to _MAX_READS at the same time."""
        self._engine = engine
        self._read = read
        # Threads of their own: an object store that is slow to answer holds up nothing else.
        self._readers = ThreadPoolExecutor(_MAX_READS, "adapter-read")
        self._is_stopped = False
        # On the host, what was read would be kept beside what was made of it, which is smaller.
        self._memory = AdapterMemory(0 if engine.is_on_host else config.host_bytes)
        self._max_bytes = config.device_bytes
        self._load_wait_s = load_wait_s
        self._room_wait_s = room_wait_s
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._num_bytes = 0
        self._unloads: set[asyncio.Task[None]] = set()
        self._released = asyncio.Event()

    @asynccontextmanager
    async def using(self, ref: AdapterRef) -> AsyncGenerator[None, None]:
        """Within it the engine takes requests for the adapter.

        Raises what `read` raises; InvalidAdapter where it does not fit the model or the budget; Overloaded where
        adapters that are in use leave no room for too long; ObjectStoreError where it takes too long; EngineDead.
        """
        if self._is_stopped:
            raise EngineDead(_STOPPED)
        entry = self._entries.get(ref.digest) or self._begin(ref)
        entry.users += 1
        try:
            if not entry.loading.done():
                # When this is cancelled or too late, the load is not.
                done, _ = await asyncio.wait([entry.loading], timeout=self._load_wait_s)
                if not done:
                    raise ObjectStoreError("the adapter has not been fetched in time; try again later")
            if entry.loading.cancelled():
                raise EngineDead(_STOPPED)
            entry.loading.result()
            yield
        finally:
            entry.users -= 1
            if self._entries.get(ref.digest) is entry:
                self._entries.move_to_end(ref.digest)
            self._released.set()

    async def stop(self) -> None:
        """Ends what is being loaded: those who wait for it get EngineDead."""
        self._is_stopped = True
        self._readers.shutdown(wait=False, cancel_futures=True)
        loads = [entry.loading for entry in self._entries.values()]
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)

    def _begin(self, ref: AdapterRef) -> _Entry:
        entry = self._entries[ref.digest] = _Entry(ref)
        entry.loading = asyncio.create_task(self._load(entry))
        entry.loading.add_done_callback(self._end_of_load)
        return entry

    def _end_of_load(self, loading: "asyncio.Task[None]") -> None:
        if not loading.cancelled():
            loading.exception()  # is known then, even if all who waited for it have left
        self._released.set()

    async def _load(self, entry: _Entry) -> None:
        try:
            adapter = await self._in_memory(entry.ref)
            num_bytes = self._engine.adapter_bytes(adapter)
            if num_bytes > self._max_bytes:
                raise InvalidAdapter(
                    f"the adapter takes {num_bytes} bytes, more than the {self._max_bytes} that all may have together"
                )
            await self._take_room(entry, num_bytes)
            await self._engine.load_adapter(adapter)
        except BaseException as error:
            del self._entries[entry.ref.digest]
            self._num_bytes -= entry.num_bytes
            if not isinstance(error, asyncio.CancelledError):
                logger.warning("the adapter %s could not be loaded: %s", entry.ref.id, type(error).__name__)
            raise

    async def _in_memory(self, ref: AdapterRef) -> LoadedAdapter:
        adapter = self._memory.get(ref)
        if adapter is None:
            adapter = await asyncio.get_running_loop().run_in_executor(self._readers, self._read, ref)
            self._memory.add(adapter)
        return adapter

    async def _take_room(self, entry: _Entry, num_bytes: int) -> None:
        """Returns once so much of the device is free for the entry. Nobody is unloaded before it is certain that this
        is enough. Raises Overloaded."""
        try:
            async with asyncio.timeout(self._room_wait_s):
                while (leaving := self._to_unload_for(num_bytes)) is None:
                    self._released.clear()
                    await self._released.wait()
        except TimeoutError:
            raise Overloaded("the adapters that are in use leave no room for another one; try again later") from None
        for other in leaving:
            del self._entries[other.ref.digest]
            self._num_bytes -= other.num_bytes
            # It begins before any load that begins after this: who comes back for `other` does not find it still there.
            unload = asyncio.create_task(self._engine.unload_adapter(other.ref))
            self._unloads.add(unload)
            unload.add_done_callback(self._unloads.discard)
        self._num_bytes += num_bytes
        entry.num_bytes = num_bytes
        # Also those that go for others: this one may have got a part of their room.
        await asyncio.gather(*self._unloads)

    def _to_unload_for(self, num_bytes: int) -> list[_Entry] | None:
        """Those unused for longest, as many as it takes; None where what is in use leaves too little."""
        excess = self._num_bytes + num_bytes - self._max_bytes
        leaving = []
        for entry in self._entries.values():
            if excess > 0 and entry.users == 0 and entry.loading.done():
                leaving.append(entry)
                excess -= entry.num_bytes
        return leaving if excess <= 0 else None
