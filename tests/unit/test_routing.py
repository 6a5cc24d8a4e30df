"""Which replicas a request should go to."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.routing import MAX_EXCESS, SPARE_REQUESTS, STRIDE, Affinity, in_order, with_room
from deployments.types import AdapterRef, GenerateRequest, SamplingParams

REPLICAS = ("a", "b", "c")
IDLE = dict.fromkeys(REPLICAS, 0)

names = st.text("abcdefgh", min_size=1, max_size=8)
keys = st.binary(min_size=1, max_size=32)
loads_of_replicas = st.dictionaries(names, st.none() | st.integers(0, 500), min_size=1, max_size=12)


def make_affinity(**changes: Any) -> Affinity:
    return Affinity(**{"block_size": 16, "shares_prefixes": True} | changes)


def make_request(
    number: int = 0, *, num_tokens: int = 200, header: Sequence[int] = (), **changes: Any
) -> GenerateRequest:
    """Requests of different numbers have nothing but the header in common."""
    prompt = (*header, *([1000 + number] * (num_tokens - len(header))))
    return replace(GenerateRequest("r", "model", prompt, SamplingParams(), cache_salt="account"), **changes)


def longer(request: GenerateRequest, num_tokens: int) -> GenerateRequest:
    return replace(request, prompt_token_ids=(*request.prompt_token_ids, *range(num_tokens)))


def home(request: GenerateRequest, affinity: Affinity | None = None) -> str:
    """Where it goes when all are idle."""
    return (affinity or make_affinity()).preferred(request, IDLE)[0]


@given(loads_of_replicas)
def test_some_replica_always_has_room(loads: dict[str, int | None]) -> None:
    roomy = with_room(loads)
    assert roomy
    known = [load for load in loads.values() if load is not None]
    if known:
        assert {name for name, load in loads.items() if load == min(known)} <= set(roomy)


@given(st.integers(1, 12), st.integers(1, 300), st.booleans())
def test_no_replica_gets_much_more_than_its_share(num_replicas: int, num_requests: int, has_adapter: bool) -> None:
    affinity = make_affinity()
    request = make_request(adapter=AdapterRef("ft", "digest") if has_adapter else None)
    loads: dict[str, int | None] = {f"replica-{number}": 0 for number in range(num_replicas)}
    for _ in range(num_requests):
        chosen = affinity.preferred(request, loads)[0]
        affinity.sent(request, chosen)
        loads[chosen] = (loads[chosen] or 0) + 1
    most = max(load for load in loads.values() if load is not None)
    assert most <= MAX_EXCESS * num_requests / num_replicas + SPARE_REQUESTS + 1


@given(keys, st.sets(names, min_size=1, max_size=12), names)
def test_order_of_a_key_does_not_depend_on_who_else_is_there(key: bytes, replicas: set[str], other: str) -> None:
    with_other = in_order(key, replicas | {other})
    assert [replica for replica in with_other if replica != other] == in_order(key, replicas - {other})


def test_keys_spread_evenly_and_a_new_replica_takes_its_share_only() -> None:
    homes = [in_order(b"key %d" % number, REPLICAS)[0] for number in range(3000)]
    assert all(800 < count < 1200 for count in Counter(homes).values())
    with_new = [in_order(b"key %d" % number, (*REPLICAS, "new"))[0] for number in range(3000)]
    moved = [after for before, after in zip(homes, with_new, strict=True) if before != after]
    assert set(moved) == {"new"}
    assert 600 < len(moved) < 900


@given(st.integers(0, 50), st.integers(2, 10))
def test_hot_key_takes_replicas_in_its_own_order(number: int, num_replicas: int) -> None:
    affinity = make_affinity()
    request = make_request(number, adapter=AdapterRef("ft", f"digest {number}"))
    replicas = [f"replica-{index}" for index in range(num_replicas)]
    order = affinity.preferred(request, dict.fromkeys(replicas, 0))
    loads: dict[str, int | None] = dict.fromkeys(replicas, 0)
    taken: list[str] = []
    for _ in range(40):
        chosen = affinity.preferred(request, loads)[0]
        loads[chosen] = (loads[chosen] or 0) + 1
        if chosen not in taken:
            taken.append(chosen)
    assert taken == order[: len(taken)]
    assert len(taken) > 1


def test_requests_of_one_beginning_go_to_one_replica_from_every_process() -> None:
    for number in range(5):  # also where there is more of it, until it is twice as long
        assert len({home(make_request(number, num_tokens=num_tokens)) for num_tokens in range(129, 257)}) == 1
    assert len({home(make_request(number)) for number in range(20)}) == len(REPLICAS)


@pytest.mark.parametrize(
    ("request_", "changes"),
    [
        (make_request(num_tokens=STRIDE), {}),  # the last token is always computed
        (make_request(num_tokens=1), {}),
        (make_request(num_tokens=0), {}),
        (make_request(num_tokens=128), {"block_size": 128}),
        (make_request(), {"shares_prefixes": False}),
        (make_request(sampling=SamplingParams(prompt_logprobs=1)), {}),
    ],
    ids=["short", "one token", "empty", "less than a block", "no reuse", "computed for its log-probabilities"],
)
def test_any_replica_will_do_where_nothing_can_be_found_in_a_cache(
    request_: GenerateRequest, changes: dict[str, Any]
) -> None:
    affinity = make_affinity(**changes)
    affinity.sent(request_, "a")
    assert affinity.preferred(request_, IDLE) == []


def test_one_token_more_than_a_beginning_is_enough() -> None:
    assert make_affinity().preferred(make_request(num_tokens=STRIDE + 1), IDLE)
    assert make_affinity(block_size=128).preferred(make_request(num_tokens=129), IDLE)


def test_adapter_decides_whatever_the_prompt_and_the_account() -> None:
    adapter = AdapterRef("ft", "digest")
    requests = [
        make_request(number, num_tokens=number * 30, cache_salt=f"{number}", adapter=adapter) for number in range(20)
    ]
    assert len({home(request) for request in requests}) == 1
    others = [replace(requests[9], adapter=AdapterRef("ft", f"digest {number}")) for number in range(20)]
    assert len({home(request) for request in others}) == len(REPLICAS)


def test_accounts_do_not_meet() -> None:
    affinity = make_affinity()
    request = make_request(3)
    other = next(
        other for number in range(50) if home(other := replace(request, cache_salt=f"other {number}")) != home(request)
    )
    affinity.sent(request, home(request))
    assert home(other, affinity) != home(request)


def test_conversation_stays_where_it_had_to_go() -> None:
    affinity = make_affinity()
    request = make_request(1)
    first, second, _ = affinity.preferred(request, IDLE)
    assert affinity.preferred(request, IDLE | {first: 30})[0] == second
    affinity.sent(request, second)
    for _ in range(20):  # past several lengths at which its order becomes another
        request = longer(request, 150)
        assert affinity.preferred(request, IDLE)[0] == second
        affinity.sent(request, second)


def test_what_continues_an_answer_prefers_what_its_beginning_does() -> None:
    affinity = make_affinity()
    request = make_request(2)
    affinity.sent(request, "b")
    rest = replace(request, generated=((1, 2, 3),))
    assert affinity.preferred(rest, IDLE) == affinity.preferred(request, IDLE)
    left = {"a": 0, "c": 0}  # without the one that was lost
    assert affinity.preferred(rest, left) == [name for name in affinity.preferred(request, IDLE) if name != "b"]


def test_replica_that_was_gone_has_nothing() -> None:
    affinity = make_affinity()
    request = make_request(2)
    last = affinity.preferred(request, IDLE)[-1]
    affinity.sent(request, last)
    assert home(request, affinity) == last
    affinity.preferred(request, {name: 0 for name in REPLICAS if name != last})
    assert home(request, affinity) == home(request)


def test_least_busy_of_those_that_have_the_beginning_comes_first() -> None:
    affinity = make_affinity()
    request = make_request(5)
    for replica in REPLICAS[:2]:
        affinity.sent(request, replica)
    assert affinity.preferred(longer(request, 10), {"a": 5, "b": 4, "c": 4})[:2] == ["b", "a"]
    assert affinity.preferred(longer(request, 10), {"a": 4, "b": 5, "c": 4})[:2] == ["a", "b"]


def test_replica_that_was_not_heard_of_comes_after_others_that_have_the_beginning() -> None:
    affinity = make_affinity()
    request = make_request(5)
    for replica in REPLICAS[:2]:
        affinity.sent(request, replica)
    assert affinity.preferred(request, {"a": None, "b": 1, "c": 0})[:2] == ["b", "a"]
    assert affinity.preferred(request, {"a": None, "b": 9, "c": 0})[0] == "a"


def test_longer_beginning_counts_more() -> None:
    affinity = make_affinity()
    request = make_request(8, num_tokens=200)
    affinity.sent(request, "a")
    conversation = longer(request, 200)
    affinity.sent(conversation, "b")
    assert affinity.preferred(longer(conversation, 100), IDLE)[0] == "b"


def test_what_every_prompt_begins_with_gathers_nobody() -> None:
    affinity = make_affinity()
    header = range(STRIDE)
    for number in range(30):
        request = make_request(number, header=header)
        assert affinity.preferred(request, IDLE) == make_affinity().preferred(request, IDLE)
        affinity.sent(request, home(request, affinity))
    assert len({home(make_request(number, header=header), affinity) for number in range(30)}) == len(REPLICAS)


def test_long_instructions_bring_new_conversations_to_those_that_have_them() -> None:
    affinity = make_affinity()
    instructions = range(5 * STRIDE)
    affinity.sent(make_request(0, num_tokens=400, header=instructions), "c")
    assert {home(make_request(number, num_tokens=400, header=instructions), affinity) for number in range(20)} == {"c"}


def test_what_was_met_longest_ago_is_forgotten() -> None:
    affinity = make_affinity(max_beginnings=6)
    first, second = make_request(0), make_request(1)  # three beginnings each
    elsewhere = {request: affinity.preferred(request, IDLE)[-1] for request in (first, second)}
    affinity.sent(first, elsewhere[first])
    affinity.sent(second, elsewhere[second])
    affinity.sent(first, elsewhere[first])
    affinity.sent(make_request(2), "a")
    assert home(first, affinity) == elsewhere[first]
    assert home(second, affinity) == home(second) != elsewhere[second]


@given(loads_of_replicas, st.integers(0, 5), st.integers(0, 400), st.lists(names, max_size=3))
def test_only_replicas_with_room_are_preferred_and_each_once(
    loads: dict[str, int | None], number: int, num_tokens: int, holders: list[str]
) -> None:
    affinity = make_affinity()
    request = make_request(number, num_tokens=num_tokens)
    for holder in holders:
        affinity.sent(request, holder)
    preferred = affinity.preferred(request, loads)
    assert set(preferred) in (set(), set(with_room(loads)))
    assert len(preferred) == len(set(preferred))
