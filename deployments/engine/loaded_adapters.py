"""Which adapters new requests of an engine can use, and who waits for one to go. Thread-safe; knows no tensors."""

import asyncio
import contextlib
import threading

from deployments.engine.sequence import PreparedAdapter
from deployments.errors import AdapterNotLoaded, EngineDead
from deployments.types import AdapterRef


class LoadedAdapters:
    """By digest. An adapter that is taken out lives on in the sequences that hold it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: dict[str, PreparedAdapter] = {}
        self._awaited: set[Unused] = set()
        self._closed: EngineDead | None = None

    def __contains__(self, adapter: AdapterRef) -> bool:
        return adapter.digest in self._loaded

    def get(self, adapter: AdapterRef) -> PreparedAdapter:
        """Raises AdapterNotLoaded; after `close` its error."""
        with self._lock:
            if self._closed is not None:
                raise self._closed
            prepared = self._loaded.get(adapter.digest)
        if prepared is None:
            raise AdapterNotLoaded(adapter.id)
        return prepared

    def add(self, prepared: PreparedAdapter) -> None:
        """Keeps what is there already: sequences hold it. Raises the error of `close` after that."""
        with self._lock:
            if self._closed is not None:
                raise self._closed
            self._loaded.setdefault(prepared.ref.digest, prepared)

    def take(self, adapter: AdapterRef) -> "Unused | None":
        """Takes the adapter out and returns what will tell that nobody uses it; None if it is not loaded."""
        with self._lock:
            prepared = self._loaded.pop(adapter.digest, None)
            if prepared is None:
                return None
            unused = Unused(prepared)
            self._awaited.add(unused)
        return unused

    def forget(self, unused: "Unused") -> None:
        with self._lock:
            self._awaited.discard(unused)

    def totals(self) -> tuple[int, int]:
        """How many are loaded, and their bytes."""
        with self._lock:
            return len(self._loaded), sum(prepared.num_bytes for prepared in self._loaded.values())

    def close(self, error: EngineDead) -> None:
        """Drops all adapters and ends the waiting with the error."""
        with self._lock:
            self._closed = error
            self._loaded.clear()
            awaited = list(self._awaited)
        for unused in awaited:
            unused.settle(error)


class Unused:
    """Waits, on the event loop that made it, until no sequence uses an adapter."""

    def __init__(self, prepared: PreparedAdapter) -> None:
        self.prepared = prepared
        self._loop = asyncio.get_running_loop()
        self._settled = self._loop.create_future()

    async def wait(self) -> None:
        """Raises EngineDead."""
        await self._settled

    def settle(self, error: EngineDead | None = None) -> None:
        """Ends the waiting; from any thread, and more than once."""
        # A loop that is closed has nobody waiting any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._settle, error)

    def _settle(self, error: EngineDead | None) -> None:
        if self._settled.done():
            return
        if error is None:
            self._settled.set_result(None)
        else:
            self._settled.set_exception(error)
