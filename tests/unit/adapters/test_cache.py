"""Which adapters an engine holds, and when: loaded once, kept while used, given up within the budget."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.adapters.cache import AdapterCache
from deployments.adapters.memory import AdapterMemory
from deployments.config import AdapterCacheConfig
from deployments.engine.protocol import LoadedAdapter
from deployments.errors import CorruptObject, EngineDead, InvalidAdapter, ObjectStoreError, Overloaded
from deployments.types import AdapterRef
from tests.unit.engine.adapters import make_adapter

LINEARS = {"linear": (8, 8)}
BYTES = 2 * 4 * 8 * 4
"""Of an adapter of rank 4 in memory; on the fake device it takes a quarter."""
ON_DEVICE = BYTES // 4


def ref(name: str) -> AdapterRef:
    return AdapterRef(f"ft_model_{name}", name)


class FakeEngine:
    """Takes a few turns of the event loop for everything; `num_bytes` is what its device holds at any moment."""

    def __init__(self, *, is_on_host: bool = False) -> None:
        self.is_on_host = is_on_host
        self.loaded: dict[str, int] = {}
        self.num_loads: Counter[str] = Counter()
        self.refuses: set[str] = set()
        self.num_bytes = self.most_bytes = 0

    def adapter_bytes(self, adapter: LoadedAdapter) -> int:
        if adapter.ref.digest in self.refuses:
            raise InvalidAdapter("it does not fit")
        return adapter.num_bytes // 4

    async def load_adapter(self, adapter: LoadedAdapter) -> None:
        if adapter.ref.digest in self.loaded:
            return
        self.num_bytes += self.adapter_bytes(adapter)
        self.most_bytes = max(self.most_bytes, self.num_bytes)
        await asyncio.sleep(0)
        self.loaded[adapter.ref.digest] = self.adapter_bytes(adapter)
        self.num_loads[adapter.ref.digest] += 1

    async def unload_adapter(self, adapter: AdapterRef) -> None:
        num_bytes = self.loaded.pop(adapter.digest)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.num_bytes -= num_bytes


class Reader:
    """Reads adapters by their digest; `gate` holds it up. sizes: of those that are larger than others."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.num_reads: Counter[str] = Counter()
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None

    def __call__(self, adapter: AdapterRef) -> LoadedAdapter:
        self.num_reads[adapter.digest] += 1
        assert self.gate.wait(10)
        if self.error is not None:
            raise self.error
        made = make_adapter(LINEARS, rank=4 * self.sizes.get(adapter.digest, 1))
        return LoadedAdapter(adapter, made.pairs)


def make_cache(
    *,
    on_device: int = 2,
    in_memory: int = 100,
    is_on_host: bool = False,
    load_wait_s: float = 60.0,
    room_wait_s: float = 5.0,
) -> tuple[AdapterCache, FakeEngine, Reader]:
    engine, reader = FakeEngine(is_on_host=is_on_host), Reader()
    config = AdapterCacheConfig(device_bytes=on_device * ON_DEVICE, host_bytes=in_memory * BYTES)
    return AdapterCache(engine, reader, config, load_wait_s=load_wait_s, room_wait_s=room_wait_s), engine, reader


async def use(cache: AdapterCache, name: str) -> None:
    async with cache.using(ref(name)):
        pass


async def until(condition: Callable[[], bool]) -> None:
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


async def test_an_object_store_that_is_slow_to_answer_holds_up_nothing_else() -> None:
    cache, _, reader = make_cache(on_device=20)
    reader.gate.clear()
    tasks = [asyncio.create_task(use(cache, name)) for name in "abcdefghij"]
    await until(lambda: reader.num_reads.total() == len(tasks))
    await asyncio.to_thread(lambda: None)
    reader.gate.set()
    await asyncio.gather(*tasks)


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
    cache, engine, reader = make_cache(on_device=2)
    reader.sizes["huge"] = 3
    await use(cache, "a")
    async with cache.using(ref("b")):
        for _ in range(2):
            with pytest.raises(InvalidAdapter, match="more than"):
                await use(cache, "huge")
    assert sorted(engine.loaded) == ["a", "b"]


async def test_who_cannot_have_enough_room_takes_none_from_others() -> None:
    cache, engine, reader = make_cache(on_device=3, room_wait_s=0.01)
    reader.sizes["large"] = 3
    await use(cache, "a")
    await use(cache, "b")
    async with cache.using(ref("c")):
        with pytest.raises(Overloaded):
            await use(cache, "large")
        assert sorted(engine.loaded) == ["a", "b", "c"]
    await use(cache, "large")
    assert list(engine.loaded) == ["large"]


async def test_who_comes_back_while_it_is_given_up_is_loaded_again() -> None:
    cache, engine, reader = make_cache(on_device=2)
    reader.sizes["large"] = 2
    for name in "ab":
        await use(cache, name)
    large = asyncio.create_task(use(cache, "large"))
    await until(lambda: not engine.loaded)  # it takes the room of both
    await asyncio.gather(use(cache, "b"), large)
    assert list(engine.loaded) == ["b"]
    assert engine.num_loads == {"a": 1, "b": 2, "large": 1}


async def test_stopping_ends_the_waiting_for_adapters() -> None:
    cache, _, reader = make_cache(on_device=1)
    async with cache.using(ref("a")):
        waiting = [asyncio.create_task(use(cache, "b")) for _ in range(2)]  # for room
        await until(lambda: reader.num_reads["b"] == 1)
        reader.gate.clear()
        waiting.append(asyncio.create_task(use(cache, "c")))  # for its files
        await until(lambda: reader.num_reads["c"] == 1)
        waiting.append(asyncio.create_task(use(cache, "d")))
        await asyncio.sleep(0)  # that one has not begun
        await cache.stop()
        reader.gate.set()
    for task in (*waiting, use(cache, "e")):
        with pytest.raises(EngineDead):
            await task


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
    cache, _, reader = make_cache(on_device=2, in_memory=2)
    reader.sizes["large"] = 2
    for name in ("a", "b", "c", "large", "b", "c", "a"):  # `large` pushes all of them out
        await use(cache, name)
    assert reader.num_reads == {"a": 2, "b": 2, "c": 2, "large": 1}


def test_memory_gives_up_what_was_asked_for_longest_ago() -> None:
    memory = AdapterMemory(2 * BYTES)
    adapters = {name: LoadedAdapter(ref(name), make_adapter(LINEARS).pairs) for name in "abc"}
    for name in "ab":
        memory.add(adapters[name])
    assert memory.get(ref("a")) is adapters["a"]
    memory.add(adapters["c"])
    assert [memory.get(ref(name)) for name in "abc"] == [adapters["a"], None, adapters["c"]]


async def test_what_is_larger_than_the_memory_pushes_nothing_out_of_it() -> None:
    cache, _, reader = make_cache(on_device=2, in_memory=1)
    reader.sizes["large"] = 2
    for name in ("a", "large", "a"):
        await use(cache, name)
    assert reader.num_reads == {"a": 1, "large": 1}


async def test_where_the_host_is_the_device_nothing_is_kept_twice() -> None:
    cache, engine, reader = make_cache(on_device=2, is_on_host=True)
    for name in ("a", "b", "a", "c", "b"):  # `c` pushes `b` out
        await use(cache, name)
    assert reader.num_reads == engine.num_loads == {"a": 1, "b": 2, "c": 1}


async def test_who_waits_too_long_is_told_so_and_the_load_goes_on() -> None:
    cache, engine, reader = make_cache(load_wait_s=0.01)
    reader.gate.clear()
    with pytest.raises(ObjectStoreError, match="in time"):
        await use(cache, "a")
    reader.gate.set()
    await until(lambda: "a" in engine.loaded)
    await use(cache, "a")
    assert reader.num_reads == {"a": 1}


ADAPTERS = {"a": 1, "b": 1, "c": 1, "d": 2, "e": 3, "bad": 1, "huge": 4}
"""By their sizes. `bad` does not fit the model, `huge` not the budget."""


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(ADAPTERS)), st.integers(0, 4), st.integers(0, 6) | st.none()),
        min_size=1,
        max_size=25,
    )
)
def test_whatever_is_asked_what_is_used_is_loaded_and_the_budget_holds(
    requests: list[tuple[str, int, int | None]],
) -> None:
    """requests: which adapter, for how many turns of the event loop, and after how many its caller leaves."""

    async def run() -> None:
        cache, engine, reader = make_cache(on_device=3, room_wait_s=30.0)
        reader.sizes.update(ADAPTERS)
        engine.refuses = {"bad"}

        async def request(name: str, turns: int) -> None:
            async with cache.using(ref(name)):
                for _ in range(turns + 1):
                    assert name in engine.loaded
                    await asyncio.sleep(0)

        async def impatient(task: "asyncio.Task[None]", turns: int) -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()

        async with asyncio.timeout(20):
            tasks, leaving = [], []
            for name, turns, leaves_after in requests:
                task = asyncio.create_task(request(name, turns))
                tasks.append(task)
                if leaves_after is not None:
                    leaving.append(asyncio.create_task(impatient(task, leaves_after)))
                await asyncio.sleep(0)
            await asyncio.gather(*leaving)
            found = await asyncio.gather(*tasks, return_exceptions=True)
            for (name, _, leaves_after), result in zip(requests, found, strict=True):
                if isinstance(result, asyncio.CancelledError):
                    assert leaves_after is not None
                else:
                    assert isinstance(result, InvalidAdapter) == (name in ("bad", "huge")), result
                    assert result is None or isinstance(result, InvalidAdapter)
            # Nothing was left pinned: the largest that fits takes the whole budget.
            await use(cache, "e")
        assert list(engine.loaded) == ["e"]
        assert engine.most_bytes <= 3 * ON_DEVICE
        assert engine.num_bytes == 3 * ON_DEVICE

    asyncio.run(run())
