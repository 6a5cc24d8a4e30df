"""Which adapters an engine holds, and when: loaded once, kept while used, given up within the budget."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.adapters.cache import AdapterCache
from deployments.config import AdapterCacheConfig
from deployments.engine.protocol import LoadedAdapter
from deployments.errors import CorruptObject, InvalidAdapter, Overloaded
from deployments.types import AdapterRef
from tests.unit.engine.adapters import make_adapter

LINEARS = {"linear": (8, 8)}
BYTES = 2 * 4 * 8 * 4
"""Of an adapter of rank 4 in memory; on the fake device it takes a quarter."""
ON_DEVICE = BYTES // 4


def ref(name: str) -> AdapterRef:
    return AdapterRef(f"ft_model_{name}", name)


class FakeEngine:
    def __init__(self) -> None:
        self.loaded: dict[str, int] = {}
        self.num_loads: Counter[str] = Counter()
        self.refuses: set[str] = set()

    async def load_adapter(self, adapter: LoadedAdapter) -> int:
        await asyncio.sleep(0)
        if adapter.ref.digest in self.refuses:
            raise InvalidAdapter("it does not fit")
        num_bytes = sum(pair.a.nbytes + pair.b.nbytes for pair in adapter.pairs.values()) // 4
        self.loaded[adapter.ref.digest] = num_bytes
        self.num_loads[adapter.ref.digest] += 1
        return num_bytes

    async def unload_adapter(self, adapter: AdapterRef) -> None:
        del self.loaded[adapter.digest]
        await asyncio.sleep(0)


class Reader:
    """Reads adapters by their digest; `gate` holds it up."""

    def __init__(self) -> None:
        self.num_reads: Counter[str] = Counter()
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None

    def __call__(self, adapter: AdapterRef) -> LoadedAdapter:
        self.num_reads[adapter.digest] += 1
        assert self.gate.wait(10)
        if self.error is not None:
            raise self.error
        made = make_adapter(LINEARS, digest=adapter.digest)
        return LoadedAdapter(adapter, made.pairs)


def make_cache(
    *, on_device: int = 2, in_memory: int = 100, room_wait_s: float = 5.0
) -> tuple[AdapterCache, FakeEngine, Reader]:
    engine, reader = FakeEngine(), Reader()
    config = AdapterCacheConfig(device_bytes=on_device * ON_DEVICE, host_bytes=in_memory * BYTES)
    return AdapterCache(engine, reader, config, room_wait_s=room_wait_s), engine, reader


async def use(cache: AdapterCache, name: str) -> None:
    async with cache.using(ref(name)):
        pass


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def test_an_adapter_is_there_while_it_is_used_and_afterwards() -> None:
    cache, engine, reader = make_cache()
    async with cache.using(ref("a")):
        assert engine.loaded == {"a": ON_DEVICE}
    await use(cache, "a")
    assert engine.num_loads == {"a": 1}
    assert reader.num_reads == {"a": 1}


async def test_requests_that_come_together_cause_one_load() -> None:
    cache, engine, reader = make_cache()
    reader.gate.clear()
    tasks = [asyncio.create_task(use(cache, "a")) for _ in range(5)]
    await until(lambda: reader.num_reads["a"] == 1)
    reader.gate.set()
    await asyncio.gather(*tasks)
    assert (reader.num_reads["a"], engine.num_loads["a"]) == (1, 1)


async def test_loads_of_different_adapters_do_not_wait_for_each_other() -> None:
    cache, engine, reader = make_cache(on_device=8)
    reader.gate.clear()
    tasks = [asyncio.create_task(use(cache, name)) for name in "ab"]
    await until(lambda: reader.num_reads.total() == 2)
    reader.gate.set()
    await asyncio.gather(*tasks)
    assert sorted(engine.loaded) == ["a", "b"]


async def test_a_caller_who_leaves_ends_the_load_for_nobody() -> None:
    cache, engine, reader = make_cache()
    reader.gate.clear()
    leaving, staying = (asyncio.create_task(use(cache, "a")) for _ in range(2))
    await until(lambda: reader.num_reads["a"] == 1)
    leaving.cancel()
    reader.gate.set()
    await staying
    assert leaving.cancelled()
    assert reader.num_reads["a"] == 1
    # Nobody holds it any more: another one may take its place.
    await use(cache, "b")
    await use(cache, "c")
    assert sorted(engine.loaded) == ["b", "c"]


async def test_a_failed_load_is_told_to_all_and_tried_again_by_the_next() -> None:
    cache, engine, reader = make_cache()
    reader.gate.clear()
    reader.error = CorruptObject("damaged")
    tasks = [asyncio.create_task(use(cache, "a")) for _ in range(3)]
    await until(lambda: reader.num_reads["a"] == 1)
    reader.gate.set()
    assert [type(error) for error in await asyncio.gather(*tasks, return_exceptions=True)] == [CorruptObject] * 3
    assert reader.num_reads["a"] == 1
    reader.error = None
    await use(cache, "a")
    assert engine.loaded == {"a": ON_DEVICE}


async def test_what_was_used_longest_ago_goes_first() -> None:
    cache, engine, reader = make_cache(on_device=2)
    for name in "aba":
        await use(cache, name)
    await use(cache, "c")
    assert sorted(engine.loaded) == ["a", "c"]
    # What left the device is still in memory.
    await use(cache, "b")
    assert reader.num_reads["b"] == 1
    assert engine.num_loads["b"] == 2


async def test_what_is_used_stays_and_the_next_waits_for_room() -> None:
    cache, engine, _ = make_cache(on_device=2)
    async with cache.using(ref("a")):
        async with cache.using(ref("b")):
            waiting = asyncio.create_task(use(cache, "c"))
            for _ in range(100):
                await asyncio.sleep(0)
            assert sorted(engine.loaded) == ["a", "b"]
        await waiting
        assert sorted(engine.loaded) == ["a", "c"]


async def test_waiting_for_room_has_an_end() -> None:
    cache, engine, _ = make_cache(on_device=1, room_wait_s=0.01)
    async with cache.using(ref("a")):
        with pytest.raises(Overloaded, match="no room"):
            await use(cache, "b")
    await use(cache, "b")
    assert sorted(engine.loaded) == ["b"]


async def test_an_adapter_above_the_whole_budget_is_refused_and_harms_nobody() -> None:
    engine, reader = FakeEngine(), Reader()
    cache = AdapterCache(engine, reader, AdapterCacheConfig(device_bytes=ON_DEVICE - 1, host_bytes=BYTES))
    with pytest.raises(InvalidAdapter, match="more than"):
        await use(cache, "a")
    assert engine.loaded == {}


async def test_an_adapter_that_does_not_fit_the_model_is_refused_and_harms_nobody() -> None:
    cache, engine, _ = make_cache(on_device=1)
    engine.refuses = {"a"}
    for _ in range(2):
        with pytest.raises(InvalidAdapter):
            await use(cache, "a")
    await use(cache, "b")
    assert engine.loaded == {"b": ON_DEVICE}


async def test_other_content_under_the_same_id_is_another_adapter() -> None:
    cache, engine, _ = make_cache()
    for digest in ("old", "new"):
        async with cache.using(AdapterRef("ft_model_x", digest)):
            assert digest in engine.loaded


async def test_memory_has_a_budget_too() -> None:
    cache, _, reader = make_cache(on_device=1, in_memory=1)
    for name in "aba":
        await use(cache, name)
    assert reader.num_reads == {"a": 2, "b": 1}


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 4), st.booleans()), min_size=1, max_size=25))
def test_whatever_is_asked_what_is_used_is_loaded_and_the_budget_holds(requests: list[tuple[str, int, bool]]) -> None:
    """requests: which adapter, for how many turns of the event loop, and whether the caller leaves early."""

    async def run() -> None:
        cache, engine, _ = make_cache(on_device=3)
        async with cache.using(ref("warm")):  # from now on the cache knows what an adapter takes
            pass
        in_use: Counter[str] = Counter()

        async def request(name: str, turns: int) -> None:
            async with cache.using(ref(name)):
                in_use[name] += 1
                for _ in range(turns):
                    assert all(engine.loaded.get(used) for used, number in in_use.items() if number)
                    assert sum(engine.loaded.values()) <= 3 * ON_DEVICE
                    await asyncio.sleep(0)
                in_use[name] -= 1

        tasks = []
        for name, turns, leaves in requests:
            tasks.append(asyncio.create_task(request(name, turns)))
            await asyncio.sleep(0)
            if leaves and not in_use[name]:  # while its adapter is being loaded
                tasks[-1].cancel()
        async with asyncio.timeout(20):
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            if not task.cancelled():
                task.result()

    asyncio.run(run())
