"""Answers are sealed where they are kept."""

import pytest
from cryptography.exceptions import InvalidTag

from serve_app.use_cases.idempotency import KeptAnswer, SealedAnswers
from tests.fake_idempotency import FakeIdempotentRequests

ANSWER = KeptAnswer(201, (("content-type", "application/json"),), b'{"key": "tt_secret"}')


async def test_answer_comes_back_and_is_unreadable_in_between() -> None:
    store = FakeIdempotentRequests()
    requests = SealedAnswers(store, b"pepper")
    assert await requests.begin("account", "key", b"1") is None
    await requests.finish("account", "key", ANSWER)
    assert await requests.begin("account", "key", b"1") == ANSWER
    kept = store.kept["account", "key"]
    assert kept is not None
    assert b"secret" not in kept.body
    assert (kept.status, kept.headers) == (ANSWER.status, ANSWER.headers)


async def test_answer_opens_in_its_own_place_and_under_its_own_secret_only() -> None:
    store = FakeIdempotentRequests()
    requests = SealedAnswers(store, b"pepper")
    await requests.begin("account", "key", b"1")
    await requests.finish("account", "key", ANSWER)
    for other in (("account", "other"), ("other", "key")):
        await requests.begin(*other, b"1")
        store.kept[other] = store.kept["account", "key"]
        with pytest.raises(InvalidTag):
            await requests.begin(*other, b"1")
    with pytest.raises(InvalidTag):
        await SealedAnswers(store, b"another").begin("account", "key", b"1")


async def test_abandoned_request_may_begin_again() -> None:
    requests = SealedAnswers(FakeIdempotentRequests(), b"pepper")
    await requests.begin("account", "key", b"1")
    await requests.abandon("account", "key")
    assert await requests.begin("account", "key", b"2") is None
