"""Whether the service is ready is asked rarely, by one thread, and an outage of whoever knows changes nothing."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from serve_app.use_cases.readiness import Readiness
from tests.loop_time import LoopTime

WAIT_S = 60.0
"""Which passes only where a test says so."""


class Controller:
    """What is asked. answer: what it says, or raises. `may_answer` is cleared to let it hang."""

    def __init__(self) -> None:
        self.answer: bool | Exception = True
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.num_asked = 0
        self.threads: set[int] = set()

    def ask(self) -> bool:
        self.num_asked += 1
        self.threads.add(threading.get_ident())
        self.may_answer.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def controller() -> Iterator[Controller]:
    controller = Controller()
    yield controller
    controller.may_answer.set()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def readiness(controller: Controller, clock: Clock) -> Iterator[Readiness]:
    readiness = Readiness(controller.ask, kept_s=1, wait_s=WAIT_S, now=clock)
    yield readiness
    readiness.close()


def at_once(readiness: Readiness) -> bool:
    """The answer, which must not be waited for."""
    try:
        readiness.is_ready().send(None)
    except StopIteration as done:
        answer: bool = done.value
        return answer
    raise AssertionError("the answer is waited for")


async def in_vain(readiness: Readiness, controller: Controller, *, probes: int = 1) -> list[bool]:
    """What so many are told who wait for as long as one may, while the controller is asked and hangs."""
    controller.may_answer.clear()
    before = controller.num_asked
    waiting = asyncio.gather(*(readiness.is_ready() for _ in range(probes)))
    while controller.num_asked == before:
        await asyncio.sleep(0.001)
    LoopTime().move_on(WAIT_S)
    return await waiting


async def until_told(readiness: Readiness, answer: bool) -> None:
    while await readiness.is_ready() is not answer:
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("answer", [True, False])
async def test_the_answer_is_what_is_told(readiness: Readiness, controller: Controller, answer: bool) -> None:
    controller.answer = answer
    assert await readiness.is_ready() is answer


async def test_a_flood_asks_once(readiness: Readiness, controller: Controller, clock: Clock) -> None:
    assert await asyncio.gather(*(readiness.is_ready() for _ in range(200))) == [True] * 200
    assert controller.num_asked == 1
    clock.now += 0.9
    assert at_once(readiness)
    assert controller.num_asked == 1
    clock.now += 0.1
    controller.answer = False
    assert await asyncio.gather(*(readiness.is_ready() for _ in range(200))) == [False] * 200
    assert controller.num_asked == 2


@pytest.mark.parametrize("before", [True, False])
async def test_in_an_outage_the_last_answer_stays(
    readiness: Readiness, controller: Controller, clock: Clock, before: bool
) -> None:
    controller.answer = before
    assert await readiness.is_ready() is before
    controller.answer = ConnectionError("the controller is gone")
    for number in range(2, 10):
        clock.now += 1
        assert await asyncio.gather(*(readiness.is_ready() for _ in range(50))) == [before] * 50
        assert controller.num_asked == number
    controller.answer = not before
    clock.now += 1
    assert await readiness.is_ready() is not before


async def test_without_any_answer_the_service_is_not_ready(readiness: Readiness, controller: Controller) -> None:
    controller.answer = ConnectionError("there is no controller yet")
    assert not await readiness.is_ready()
    assert not await readiness.is_ready()
    assert controller.num_asked == 1


async def test_a_question_that_hangs_takes_one_thread_and_nobody_waits_longer_than_the_limit(
    readiness: Readiness, controller: Controller, clock: Clock
) -> None:
    assert await readiness.is_ready()
    clock.now += 1
    assert await in_vain(readiness, controller, probes=200) == [True] * 200
    for _ in range(200):  # minutes of probes
        clock.now += WAIT_S
        assert at_once(readiness)
    assert controller.num_asked == 2
    assert len(controller.threads) == 1
    assert await asyncio.to_thread(lambda: "free") == "free"


async def test_a_first_question_that_hangs_is_no_readiness(readiness: Readiness, controller: Controller) -> None:
    assert await in_vain(readiness, controller) == [False]
    controller.may_answer.set()
    await until_told(readiness, True)
    assert controller.num_asked == 1


async def test_what_hung_is_asked_again_once_it_answers(
    readiness: Readiness, controller: Controller, clock: Clock
) -> None:
    assert await readiness.is_ready()
    clock.now += 1
    assert await in_vain(readiness, controller) == [True]
    clock.now += 600
    controller.answer = False
    controller.may_answer.set()
    await until_told(readiness, False)
    controller.answer = True
    assert not at_once(readiness)
    clock.now += 1
    assert await readiness.is_ready()
    assert controller.num_asked == 3


async def test_who_stops_waiting_takes_the_answer_from_nobody(readiness: Readiness, controller: Controller) -> None:
    controller.may_answer.clear()
    gone = asyncio.create_task(readiness.is_ready())
    await asyncio.sleep(0)
    stays = asyncio.create_task(readiness.is_ready())
    await asyncio.sleep(0)
    gone.cancel()
    controller.may_answer.set()
    assert await stays
    assert controller.num_asked == 1
