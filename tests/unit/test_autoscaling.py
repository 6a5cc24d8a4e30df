"""How many generator replicas a load asks for."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.autoscaling import CACHE_USE, PENDING_TOKENS, SEQUENCES, GeneratorLoadPolicy, report
from deployments.engine.protocol import EngineStats


@dataclass
class FakeContext:
    aggregated_metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    total_num_requests: float = 1
    total_queued_requests: float | None = 0


def context(*replicas: dict[str, float], queued: float = 0, requests: float = 1) -> FakeContext:
    names = {name for replica in replicas for name in replica}
    metrics = {
        name: {f"replica-{index}": values[name] for index, values in enumerate(replicas) if name in values}
        for name in names
    }
    return FakeContext(metrics, requests, queued)


def wanted(context: FakeContext) -> int:
    policy = GeneratorLoadPolicy(target_sequences=10, target_pending_tokens=1000, target_cache_use=0.5)
    number, state = policy(context)
    assert state == {}
    return number


def test_nothing_to_do_needs_no_replica() -> None:
    assert wanted(context({SEQUENCES: 0, PENDING_TOKENS: 0, CACHE_USE: 0}, requests=0)) == 0


def test_a_request_keeps_a_replica_however_small_its_load() -> None:
    assert wanted(context({SEQUENCES: 0.1})) == 1
    assert wanted(FakeContext({}, 1, None)) == 1


@pytest.mark.parametrize(
    ("replica", "number"),
    [
        ({SEQUENCES: 10, PENDING_TOKENS: 0, CACHE_USE: 0.1}, 1),
        ({SEQUENCES: 25, PENDING_TOKENS: 0, CACHE_USE: 0.1}, 3),
        ({SEQUENCES: 1, PENDING_TOKENS: 3500, CACHE_USE: 0.1}, 4),
        ({SEQUENCES: 5, PENDING_TOKENS: 0, CACHE_USE: 0.9}, 2),
    ],
)
def test_the_signal_nearest_to_its_target_decides(replica: dict[str, float], number: int) -> None:
    assert wanted(context(replica)) == number


def test_loads_of_replicas_and_what_waits_for_one_add_up() -> None:
    assert wanted(context({SEQUENCES: 10}, {PENDING_TOKENS: 1000}, queued=10)) == 3


def test_a_hair_above_the_target_starts_nothing() -> None:
    assert wanted(context({SEQUENCES: 10.4})) == 1


@given(st.lists(st.floats(0, 100), min_size=1, max_size=5), st.floats(0, 100), st.floats(0.1, 50))
def test_more_load_never_wants_fewer_replicas(sequences: list[float], queued: float, more: float) -> None:
    before = wanted(context(*({SEQUENCES: number} for number in sequences), queued=queued))
    after = wanted(context(*({SEQUENCES: number + more} for number in sequences), queued=queued))
    assert after >= before


def test_targets_above_zero_only() -> None:
    with pytest.raises(ValueError, match="above zero"):
        GeneratorLoadPolicy(target_cache_use=0)


def test_a_replica_reports_what_the_policy_reads() -> None:
    stats = EngineStats(num_running=3, num_waiting=4, num_free_blocks=25, num_blocks=100, num_pending_tokens=900)
    assert report(stats) == {SEQUENCES: 7, PENDING_TOKENS: 900, CACHE_USE: 0.75}
