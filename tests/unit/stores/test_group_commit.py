"""Group commit: what waits together is committed together, in order, and fails alone."""

import asyncio
from collections.abc import Sequence

import pytest

from serve_app.stores.group_commit import GroupCommit


class Log:
    """Commits whatever comes, each group as soon as `gate` is open; refuses groups with a negative number in them."""

    def __init__(self) -> None:
        self.num_tries = 0
        self.groups: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def commit(self, numbers: Sequence[int]) -> list[int]:
        await self.gate.wait()
        self.num_tries += 1
        if min(numbers) < 0:
            raise ValueError(f"{min(numbers)}")
        self.groups.append(list(numbers))
        return [number * 10 for number in numbers]


async def test_operations_that_wait_share_a_commit_in_their_order() -> None:
    log = Log()
    group = GroupCommit[int, int](log.commit)
    assert await asyncio.gather(*map(group.submit, range(3))) == [0, 10, 20]
    log.gate.clear()
    first = asyncio.create_task(group.submit(3))
    await asyncio.sleep(0.01)
    later = [asyncio.create_task(group.submit(number)) for number in (4, 5)]
    await asyncio.sleep(0)
    log.gate.set()
    assert await asyncio.gather(first, *later) == [30, 40, 50]
    assert log.groups == [[0, 1, 2], [3], [4, 5]]


async def test_one_operation_that_fails_takes_no_other_with_it() -> None:
    log = Log()
    group = GroupCommit[int, int](log.commit)
    answers = await asyncio.gather(*map(group.submit, (1, -2, 3)), return_exceptions=True)
    assert answers[0] == 10 and answers[2] == 30
    assert isinstance(answers[1], ValueError)
    assert await group.submit(4) == 40


async def test_a_fatal_failure_is_that_of_the_whole_group_at_once() -> None:
    log = Log()
    group = GroupCommit[int, int](log.commit, fatal=(ValueError,), max_group=3)
    answers = await asyncio.gather(*map(group.submit, (1, -2, 3, 4)), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["-2", "-2", "-2", "40"]
    assert log.num_tries == 2


async def test_operation_is_withdrawn_before_it_was_taken_up_and_not_after() -> None:
    log = Log()
    log.gate.clear()
    group = GroupCommit[int, int](log.commit)
    running = asyncio.create_task(group.submit(1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting = asyncio.create_task(group.submit(2))
    await asyncio.sleep(0)
    for task in (running, waiting):
        task.cancel()
    await asyncio.wait({running, waiting})
    log.gate.set()
    assert await group.submit(3) == 30
    assert log.groups == [[1], [3]]


async def test_groups_are_bounded() -> None:
    log = Log()
    group = GroupCommit[int, int](log.commit, max_group=2)
    await asyncio.gather(*map(group.submit, range(5)))
    assert log.groups == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("count", [1, 2])
async def test_every_operation_gets_its_own_failure(count: int) -> None:
    group = GroupCommit[int, int](Log().commit)
    answers = await asyncio.gather(*(group.submit(-number - 1) for number in range(count)), return_exceptions=True)
    assert [str(answer) for answer in answers] == [str(-number - 1) for number in range(count)]
