"""Idempotent requests are begun and ended whole, whoever leaves and whatever fails."""

import asyncio

import pytest

from deployments.errors import Conflict, StorageError
from serve_app.use_cases.idempotency import KeptAnswer
from serve_app.use_cases.idempotent_runs import IdempotentRuns
from tests.fake_idempotency import FakeIdempotentRequests

PLACE = ("account", "key")
ANSWER = KeptAnswer(200, (), b"x")


@pytest.fixture
def store() -> FakeIdempotentRequests:
    return FakeIdempotentRequests()


@pytest.fixture
def runs(store: FakeIdempotentRequests) -> IdempotentRuns:
    return IdempotentRuns(store, retry_s=0.01)


async def test_begin_that_is_cancelled_while_it_is_committed_is_undone(
    store: FakeIdempotentRequests, runs: IdempotentRuns
) -> None:
    store.committing.clear()
    beginning = asyncio.create_task(runs.begin(*PLACE, b"1"))
    await store.begun.wait()
    beginning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await beginning
    assert PLACE in store.kept
    store.committing.set()
    await forgotten(store)
    assert await runs.begin(*PLACE, b"1") is None


async def test_begin_whose_answer_the_store_loses_is_undone_before_another_may_begin(
    store: FakeIdempotentRequests, runs: IdempotentRuns
) -> None:
    store.begin_error = store.error = StorageError("lost")
    with pytest.raises(StorageError):
        await runs.begin(*PLACE, b"1")
    with pytest.raises(Conflict):
        await runs.begin(*PLACE, b"1")
    store.begin_error = store.error = None
    await forgotten(store)
    await asyncio.sleep(0)
    assert await runs.begin(*PLACE, b"1") is None


async def test_cancelled_repetition_leaves_the_running_request_alone(
    store: FakeIdempotentRequests, runs: IdempotentRuns
) -> None:
    await runs.begin(*PLACE, b"1")
    repeating = asyncio.create_task(runs.begin(*PLACE, b"1"))
    await asyncio.sleep(0)
    repeating.cancel()
    await asyncio.gather(repeating, return_exceptions=True)
    for _ in range(10):
        await asyncio.sleep(0)
    assert PLACE in store.kept


async def test_what_goes_on_to_the_end_holds_its_cancelled_caller_until_then(runs: IdempotentRuns) -> None:
    """The caller holds what the work uses, such as its turn to have megabytes in memory."""
    began, may_end = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        began.set()
        await may_end.wait()

    calling = asyncio.create_task(runs.to_the_end(work()))
    await began.wait()
    calling.cancel()
    await asyncio.sleep(0)
    assert not calling.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await calling


async def test_answer_that_cannot_be_kept_now_is_kept_later(
    store: FakeIdempotentRequests, runs: IdempotentRuns
) -> None:
    await runs.begin(*PLACE, b"1")
    store.error = OSError("no space left")
    await runs.finish(*PLACE, ANSWER)
    assert store.kept[PLACE] is None
    store.error = None
    while store.kept[PLACE] is None:
        await asyncio.sleep(0.01)
    assert await runs.begin(*PLACE, b"1") == ANSWER


async def test_request_that_cannot_be_abandoned_now_is_abandoned_later(
    store: FakeIdempotentRequests, runs: IdempotentRuns
) -> None:
    await runs.begin(*PLACE, b"1")
    store.error = StorageError("lost")
    await runs.abandon(*PLACE)
    assert PLACE in store.kept
    store.error = None
    await forgotten(store)


async def test_trying_again_ends(store: FakeIdempotentRequests, caplog: pytest.LogCaptureFixture) -> None:
    runs = IdempotentRuns(store, retry_s=0)
    await runs.begin(*PLACE, b"1")
    store.error = StorageError("lost")
    await runs.finish(*PLACE, ANSWER)
    while "stays taken" not in caplog.text:
        await asyncio.sleep(0.01)
    assert caplog.text.count("not closed yet") == 5


async def forgotten(store: FakeIdempotentRequests) -> None:
    while store.kept:
        await asyncio.sleep(0.01)
