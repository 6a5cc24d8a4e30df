"""Keys: who may call, until when; over a store in memory and clocks that the tests turn."""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deployments.errors import InvalidParameter, NotFound, Unauthenticated
from serve_app.use_cases.callers import Dialect, KeyLimits, Principal, Scope, Window
from serve_app.use_cases.key_format import generate_key
from serve_app.use_cases.key_records import KeyGrant
from serve_app.use_cases.keys import CACHE_TTL_S, Keys
from tests.unit.key_stores import InMemoryKeyStore


@dataclass
class Clock:
    time: float = 1_000_000.0

    def __call__(self) -> float:
        return self.time


def limited(*windows: Window) -> KeyGrant:
    return KeyGrant(limits=((Dialect.INFERKIT, KeyLimits(windows)),))


GRANT = KeyGrant(
    scopes=frozenset({Scope.ADMIN}),
    models=frozenset({"one", "two"}),
    limits=((Dialect.TOTALGPT, KeyLimits((Window("day", 7, 86400, "tokens"),), max_concurrent=3)),),
    budget=5,
)


class Service:
    """One process's view of the keys, and the means to look at it."""

    def __init__(
        self, store: InMemoryKeyStore | None = None, *, clock: Clock | None = None, pepper: bytes = b"p"
    ) -> None:
        self.store = store or InMemoryKeyStore()
        self.clock = clock or Clock()
        self.keys = Keys(self.store, pepper, now=self.clock, monotonic=self.clock)


async def refusal(attempt: Callable[[], Awaitable[object]]) -> str:
    with pytest.raises(Unauthenticated) as refused:
        await attempt()
    return refused.value.message


async def test_a_created_key_tells_its_account() -> None:
    keys = Service().keys
    text, record = await keys.create("acme", "laptop", actor="test")
    assert await keys.authenticate(text) == Principal(account="acme", key_id=record.id)


async def test_a_key_works_in_another_process_at_once() -> None:
    here = Service()
    there = Service(here.store)
    text, record = await here.keys.create("acme", "laptop", actor="test")
    assert (await there.keys.authenticate(text)).key_id == record.id


async def test_the_store_never_holds_the_key() -> None:
    service = Service()
    text, _ = await service.keys.create("acme", "laptop", actor="test")
    assert text not in repr(await service.store.list(None))
    assert text.rsplit("_")[-1] not in repr(await service.store.list(None))


async def test_a_key_is_worthless_under_another_pepper() -> None:
    here = Service(pepper=b"one")
    text, _ = await here.keys.create("acme", "laptop", actor="test")
    with pytest.raises(Unauthenticated):
        await Service(here.store, pepper=b"two").keys.authenticate(text)


async def test_every_refusal_says_the_same() -> None:
    service = Service()
    keys = service.keys
    revoked, record = await keys.create("acme", "revoked", actor="test")
    await keys.revoke(record.id, actor="test")
    expired, _ = await keys.create("acme", "expired", expires_at=service.clock.time + 1, actor="test")
    service.clock.time += 2
    messages = {
        await refusal(lambda text=text: keys.authenticate(text))  # type: ignore[misc]
        for text in ("", "tt_", "Bearer", generate_key().text, revoked, expired, "\x00", "ключ")
    }
    assert len(messages) == 1


async def test_a_forged_secret_for_a_known_id_is_refused() -> None:
    """The id and the checksum are public knowledge; only the secret proves."""
    from serve_app.use_cases import key_format

    service = Service()
    text, record = await service.keys.create("acme", "laptop", actor="test")
    body = f"tt_{record.id}_" + "A" * 43
    forged = body + key_format._checksum(body)
    assert key_format.parse_key(forged) is not None
    assert forged != text
    with pytest.raises(Unauthenticated):
        await service.keys.authenticate(forged)


async def test_a_key_expires_at_its_time_although_it_is_cached() -> None:
    service = Service()
    text, _ = await service.keys.create("acme", "laptop", expires_at=service.clock.time + 2, actor="test")
    service.clock.time += 1.999
    await service.keys.authenticate(text)
    service.clock.time += 0.001
    with pytest.raises(Unauthenticated):
        await service.keys.authenticate(text)


async def test_a_revoked_key_stops_at_once_where_it_was_revoked() -> None:
    service = Service()
    text, record = await service.keys.create("acme", "laptop", actor="test")
    await service.keys.authenticate(text)
    await service.keys.revoke(record.id, actor="test")
    with pytest.raises(Unauthenticated):
        await service.keys.authenticate(text)


@given(before=st.floats(0, 100), after=st.floats(CACHE_TTL_S, 100))
@example(before=0, after=CACHE_TTL_S)
async def test_a_revoked_key_stops_everywhere_within_the_cache_time(before: float, after: float) -> None:
    here = Service()
    there = Service(here.store, clock=here.clock)
    text, record = await here.keys.create("acme", "laptop", actor="test")
    here.clock.time += before
    await there.keys.authenticate(text)
    await here.keys.revoke(record.id, actor="test")
    here.clock.time += after
    with pytest.raises(Unauthenticated):
        await there.keys.authenticate(text)


async def test_a_revocation_that_races_with_the_lookup_is_seen_in_time() -> None:
    """The record was read before the revocation, however late the answer came: its age counts from the question."""
    here = Service()
    there = Service(here.store, clock=here.clock)
    text, record = await here.keys.create("acme", "laptop", actor="test")
    get = here.store.get

    async def slow_get(key_id: str) -> object:
        found = await get(key_id)
        await here.keys.revoke(record.id, actor="test")
        here.clock.time += CACHE_TTL_S - 1
        return found

    there.store.get = slow_get  # type: ignore[method-assign, assignment]
    await there.keys.authenticate(text)
    there.store.get = get  # type: ignore[method-assign]
    here.clock.time += 1
    with pytest.raises(Unauthenticated):
        await there.keys.authenticate(text)


async def test_a_busy_key_is_looked_up_once_in_the_cache_time() -> None:
    service = Service()
    text, _ = await service.keys.create("acme", "laptop", actor="test")
    for _ in range(100):
        await service.keys.authenticate(text)
        service.clock.time += CACHE_TTL_S / 200
    assert service.store.num_gets == 1


async def test_malformed_keys_never_reach_the_store() -> None:
    service = Service()
    for text in ("", "sk-123", generate_key().text[:-1] + "!"):
        await refusal(lambda text=text: service.keys.authenticate(text))  # type: ignore[misc]
    assert service.store.num_gets == 0


async def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.use_cases.keys._MAX_CACHED_KEYS", 2)
    service = Service()
    texts = [(await service.keys.create("acme", f"key {index}", actor="test"))[0] for index in range(3)]
    for text in texts:
        await service.keys.authenticate(text)
    assert len(service.keys._cache) == 2


async def test_keys_are_listed_by_account_oldest_first() -> None:
    service = Service()
    for account, name in (("acme", "a"), ("other", "b"), ("acme", "c")):
        await service.keys.create(account, name, actor="test")
        service.clock.time += 1
    assert [record.name for record in await service.keys.list("acme")] == ["a", "c"]
    assert [record.name for record in await service.keys.list()] == ["a", "b", "c"]


async def test_revoking_again_keeps_the_first_time() -> None:
    service = Service()
    _, record = await service.keys.create("acme", "laptop", actor="test")
    first = service.clock.time
    await service.keys.revoke(record.id, actor="test")
    service.clock.time += 10
    await service.keys.revoke(record.id, actor="test")
    assert [record.revoked_at for record in await service.keys.list()] == [first]


async def test_revoking_an_unknown_key_is_not_found() -> None:
    with pytest.raises(NotFound):
        await Service().keys.revoke("nothing", actor="test")


@pytest.mark.parametrize("value", ["", "x" * 201, "line\nbreak", "\x00"])
async def test_names_must_be_printable_and_short(value: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        await Service().keys.create("acme", value, actor="test")
    assert refused.value.param == "name"


@pytest.mark.parametrize("ahead", [0.0, -1.0, math.nan])
async def test_a_key_cannot_be_created_expired(ahead: float) -> None:
    service = Service()
    with pytest.raises(InvalidParameter) as refused:
        await service.keys.create("acme", "laptop", expires_at=service.clock.time + ahead, actor="test")
    assert refused.value.param == "expires_at"


async def test_a_key_tells_what_it_may_do() -> None:
    keys = Service().keys
    text, record = await keys.create("acme", "laptop", grant=GRANT, actor="test")
    assert await keys.authenticate(text) == Principal("acme", record.id, GRANT.scopes, GRANT.models, GRANT.limits)


async def test_a_changed_grant_holds_everywhere_within_the_cache_time() -> None:
    here = Service()
    there = Service(here.store, clock=here.clock)
    text, record = await here.keys.create("acme", "laptop", actor="test")
    await there.keys.authenticate(text)
    assert (await here.keys.change(record.id, GRANT, actor="test")).grant == GRANT
    assert (await here.keys.authenticate(text)).scopes == GRANT.scopes
    here.clock.time += CACHE_TTL_S
    assert (await there.keys.authenticate(text)).scopes == GRANT.scopes


async def test_a_key_of_a_closed_account_is_refused() -> None:
    service = Service()
    text, record = await service.keys.create("acme", "laptop", actor="test")
    service.store._records[record.id] = replace(record, account_closed_at=1.0)
    await refusal(lambda: service.keys.authenticate(text))


async def test_a_rotated_key_has_two_secrets_for_a_while() -> None:
    service = Service()
    old, record = await service.keys.create("acme", "laptop", actor="test")
    new, rotated = await service.keys.rotate(record.id, overlap_s=60, actor="test")
    assert new != old
    assert rotated.id == record.id
    for text in (old, new):
        assert (await service.keys.authenticate(text)).key_id == record.id
    service.clock.time += 60
    await refusal(lambda: service.keys.authenticate(old))
    assert (await service.keys.authenticate(new)).key_id == record.id


async def test_a_new_secret_works_at_once_where_the_old_record_is_cached() -> None:
    here = Service()
    there = Service(here.store, clock=here.clock)
    old, record = await here.keys.create("acme", "laptop", actor="test")
    await there.keys.authenticate(old)
    new, _ = await here.keys.rotate(record.id, overlap_s=0, actor="test")
    assert (await there.keys.authenticate(new)).key_id == record.id
    await refusal(lambda: there.keys.authenticate(old))


async def test_rotating_twice_ends_the_first_secret() -> None:
    keys = Service().keys
    first, record = await keys.create("acme", "laptop", actor="test")
    second, _ = await keys.rotate(record.id, overlap_s=60, actor="test")
    third, _ = await keys.rotate(record.id, overlap_s=60, actor="test")
    await refusal(lambda: keys.authenticate(first))
    for text in (second, third):
        await keys.authenticate(text)


async def test_a_key_that_has_ended_cannot_be_rotated() -> None:
    keys = Service().keys
    _, record = await keys.create("acme", "laptop", actor="test")
    await keys.revoke(record.id, actor="test")
    with pytest.raises(NotFound):
        await keys.rotate(record.id, overlap_s=60, actor="test")


async def test_last_use_is_noted_to_the_minute_and_not_by_the_request() -> None:
    service = Service()
    text, record = await service.keys.create("acme", "laptop", actor="test")
    service.clock.time = 1_000_030.0 + 60
    await service.keys.authenticate(text)
    assert (await service.keys.get(record.id)).last_used_at is None
    await service.keys.save_last_used()
    assert (await service.keys.get(record.id)).last_used_at == 1_000_080.0


@pytest.mark.parametrize(
    ("grant", "param"),
    [
        (KeyGrant(scopes=frozenset()), "scopes"),
        (KeyGrant(models=frozenset()), "models"),
        (KeyGrant(budget=-1), "budget"),
        (KeyGrant(budget=10**30), "budget"),
        (limited(Window("minute", 1, 60), Window("minute", 2, 60)), "limits"),
        (limited(Window("", 1, 60)), "limits"),
        (limited(Window("minute", -1, 60)), "limits"),
        (limited(Window("minute", 1, 0)), "limits"),
        (limited(Window("minute", 1, math.nan)), "limits"),
    ],
)
async def test_a_grant_that_makes_no_sense_is_refused(grant: KeyGrant, param: str) -> None:
    service = Service()
    with pytest.raises(InvalidParameter) as refused:
        await service.keys.create("acme", "laptop", grant=grant, actor="test")
    assert refused.value.param == param
    assert await service.keys.list() == []


async def test_every_act_is_audited_without_the_secret() -> None:
    service = Service()
    text, record = await service.keys.create("acme", "laptop", actor="admin-key")
    await service.keys.change(record.id, GRANT, actor="admin-key")
    new, _ = await service.keys.rotate(record.id, overlap_s=60, actor="admin-key")
    await service.keys.revoke(record.id, actor="admin-key")
    audited = service.store.audited
    assert [entry.action for entry in audited] == ["key.create", "key.change", "key.rotate", "key.revoke"]
    assert {(entry.actor, entry.target) for entry in audited} == {("admin-key", record.id)}
    for secret in (text, new, record.digest.hex()):
        assert secret not in repr(audited)
