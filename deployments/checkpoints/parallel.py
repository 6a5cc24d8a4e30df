"""Parts of a large object, several at a time."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def split(size: int, part_bytes: int) -> list[tuple[int, int]]:
    """Where each part starts, and where the next would; nothing at all is one empty part."""
    return [(start, min(start + part_bytes, size)) for start in range(0, max(size, 1), part_bytes)]


def in_parallel(call: Callable[[T], R], items: Sequence[T], max_parallel: int) -> list[R]:
    """What `call` returns for each item, in order. After an error none is begun any more; it is raised when those at
    work are done."""
    if len(items) <= 1:
        return [call(item) for item in items]
    with ThreadPoolExecutor(min(max_parallel, len(items)), "object-parts") as threads:
        calls = [threads.submit(call, item) for item in items]
        try:
            return [each.result() for each in calls]
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
