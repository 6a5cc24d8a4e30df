"""When tokens leave the step thread: at once, with others, or at the end; in order and none lost."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.engine.delivery import Delivery
from deployments.engine.generation import QueuedGeneration
from deployments.engine.protocol import TokenDelta
from deployments.errors import EngineDead
from deployments.types import FinishReason

INTERVAL_S = 0.03


class Loop:
    """Counts its wake-ups and obeys at once."""

    def __init__(self) -> None:
        self.num_woken = 0
        self.is_closed = False

    def call_soon_threadsafe(self, function: Callable[..., None], *arguments: object) -> None:
        if self.is_closed:
            raise RuntimeError("the loop is closed")
        self.num_woken += 1
        function(*arguments)


class Recorder(QueuedGeneration):
    def __init__(self, loop: Loop, *, wants_pieces: bool = True) -> None:
        super().__init__([0], wants_pieces=wants_pieces, stop=lambda _: None, forget=lambda: None)
        self.loop = loop  # type: ignore[assignment]
        self.items: list[list[int]] = []
        self.error: Exception | None = None

    def put(self, deltas: list[TokenDelta]) -> None:  # type: ignore[override]
        self.items.append([token_id for delta in deltas for token_id in delta.token_ids])
        super().put(deltas)

    def fail(self, error: Exception) -> None:
        self.error = error


class Steps:
    """A delivery under a clock that the test moves."""

    def __init__(self, interval_s: float = INTERVAL_S) -> None:
        self.now = 100.0
        self.delivery = Delivery(interval_s, lambda: self.now)

    def step(self, seconds: float, *tokens: tuple[Recorder, TokenDelta]) -> None:
        self.now += seconds
        for generation, delta in tokens:
            self.delivery.add(generation, [delta])
        self.delivery.send()


def token(token_id: int, *, is_last: bool = False) -> TokenDelta:
    return TokenDelta(0, (token_id,), finish_reason=FinishReason.LENGTH if is_last else None)


@pytest.fixture
async def loop() -> Loop:
    return Loop()


async def test_the_first_goes_at_once_and_the_next_together(loop: Loop) -> None:
    steps, stream = Steps(), Recorder(loop)
    for number in range(8):
        steps.step(0.01, (stream, token(number)))
    assert stream.items == [[0], [1, 2], [3, 4, 5]]
    assert loop.num_woken == 3


async def test_the_last_goes_at_once_with_what_was_held(loop: Loop) -> None:
    steps, stream = Steps(), Recorder(loop)
    for number in range(4):
        steps.step(0.001, (stream, token(number, is_last=number == 3)))
    assert stream.items == [[0], [1, 2, 3]]


async def test_without_an_interval_each_step_sends(loop: Loop) -> None:
    steps, stream = Steps(interval_s=0.0), Recorder(loop)
    for number in range(3):
        steps.step(0.0, (stream, token(number)))
    assert stream.items == [[0], [1], [2]]


async def test_many_streams_share_a_wake_up(loop: Loop) -> None:
    steps, streams = Steps(), [Recorder(loop) for _ in range(5)]
    for number in range(7):
        steps.step(0.01, *[(stream, token(number)) for stream in streams])
    assert loop.num_woken == 3
    assert all(stream.items == [[0], [1, 2], [3, 4, 5]] for stream in streams)


@pytest.mark.parametrize(("number", "stretch"), [(1, 1), (16, 1), (32, 2), (48, 3), (200, 3)])
async def test_the_more_streams_the_longer_they_wait(loop: Loop, number: int, stretch: int) -> None:
    steps, streams = Steps(interval_s=8.0), [Recorder(loop) for _ in range(number)]
    for step in range(60):
        steps.step(1.0, *[(stream, token(step)) for stream in streams])
    sizes = [len(item) for item in streams[0].items[2:]]
    assert sizes == [8 * stretch] * len(sizes)
    assert sizes


async def test_whoever_wants_no_pieces_is_not_woken_before_the_end(loop: Loop) -> None:
    steps, whole = Steps(), Recorder(loop, wants_pieces=False)
    for number in range(20):
        steps.step(0.02, (whole, token(number, is_last=number == 19)))
    assert whole.items == [list(range(20))]
    assert loop.num_woken == 1


async def test_a_stream_whose_sequences_pause_is_still_sent_what_is_held(loop: Loop) -> None:
    steps, paused, other = Steps(), Recorder(loop), Recorder(loop)
    steps.step(0.0, (paused, token(0)), (other, token(0)))
    steps.step(0.001, (paused, token(1)))
    steps.step(1.0, (other, token(1)))
    assert paused.items == [[0], [1]]


async def test_an_error_comes_after_what_was_held(loop: Loop) -> None:
    steps, stream = Steps(), Recorder(loop)
    steps.step(0.0, (stream, token(0)))
    steps.step(0.001, (stream, token(1)))
    steps.delivery.fail(stream, EngineDead("gone"))
    steps.delivery.send()
    assert stream.items == [[0], [1]]
    assert isinstance(stream.error, EngineDead)


async def test_what_nobody_wants_any_more_is_not_kept(loop: Loop) -> None:
    steps, gone = Steps(), Recorder(loop, wants_pieces=False)
    steps.step(0.0, (gone, token(0)))
    gone.close()
    steps.step(1.0)
    assert not steps.delivery._held


async def test_a_closed_loop_does_not_disturb_the_others(loop: Loop) -> None:
    steps, closed, stream = Steps(), Recorder(Loop()), Recorder(loop)
    closed.loop.is_closed = True  # type: ignore[attr-defined]
    steps.step(0.0, (closed, token(0)), (stream, token(0)))
    assert stream.items == [[0]]


@given(
    seconds=st.lists(st.floats(0, 0.1), min_size=1, max_size=30),
    interval_s=st.floats(0, 0.2),
    wants_pieces=st.booleans(),
)
def test_nothing_is_lost_and_the_order_stays(seconds: list[float], interval_s: float, wants_pieces: bool) -> None:
    async def run() -> None:
        loop = Loop()
        steps, generation = Steps(interval_s), Recorder(loop, wants_pieces=wants_pieces)
        for number, pause in enumerate(seconds):
            steps.step(pause, (generation, token(number, is_last=number == len(seconds) - 1)))
        assert [token_id for item in generation.items for token_id in item] == list(range(len(seconds)))
        assert not steps.delivery._held
        assert loop.num_woken <= 2 + sum(seconds) / interval_s if interval_s else True

    asyncio.run(run())
