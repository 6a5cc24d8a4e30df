"""Adapters that were read, in this process's memory."""

from collections import OrderedDict

from deployments.engine.protocol import LoadedAdapter
from deployments.types import AdapterRef


class AdapterMemory:
    """By digest; what was asked for longest ago goes when there is no room."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._adapters: OrderedDict[str, LoadedAdapter] = OrderedDict()

    def get(self, ref: AdapterRef) -> LoadedAdapter | None:
        if ref.digest in self._adapters:
            self._adapters.move_to_end(ref.digest)
        return self._adapters.get(ref.digest)

    def add(self, adapter: LoadedAdapter) -> None:
        """Keeps it, unless it is larger than the whole budget."""
        if adapter.ref.digest in self._adapters or adapter.num_bytes > self._max_bytes:
            return
        self._adapters[adapter.ref.digest] = adapter
        self._num_bytes += adapter.num_bytes
        while self._num_bytes > self._max_bytes:
            _, gone = self._adapters.popitem(last=False)
            self._num_bytes -= gone.num_bytes
