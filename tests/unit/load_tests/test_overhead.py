"""How what surrounds the engine is reckoned from the turns of both; and the bare engine, asked by its pipes."""

import pytest

from load_tests import overhead
from load_tests.overhead import Measured, Side, quantile_s, report
from load_tests.records import Sample


def side(first_ms: list[float], *, wall_s: float = 2.0) -> Side:
    """One turn with one client, and one with 32 that takes `wall_s` for a hundred tokens of each request."""
    samples = [Sample(1.0, 1.0 + one / 1000, 2.0, 100) for one in first_ms]
    return Side({1: [(2.0, samples)], 32: [(wall_s, samples)]})


def measured() -> Measured:
    return Measured(
        "plain",
        service=side([30, 50, 100], wall_s=2.0),
        engine=side([20, 45, 80], wall_s=1.5),
        small_per_s=[100, 300, 200],
        framework={0.005: 0, 0.01: 50, 0.02: 100, float("inf"): 100},
    )


def test_time_is_added_prompt_by_prompt() -> None:
    assert measured().added_ms() == pytest.approx([10, 5, 20])


def test_throughput_is_kept_turn_by_turn() -> None:
    assert measured().kept() == pytest.approx([0.75])


def test_a_turn_that_lacks_a_request_has_no_added_time() -> None:
    with pytest.raises(ValueError, match="longer"):
        Measured("plain", service=side([1]), engine=side([1, 2])).added_ms()


def test_quantiles_lie_within_their_bucket() -> None:
    buckets = {0.01: 10.0, 0.02: 30.0, 0.05: 40.0, float("inf"): 40.0}
    assert quantile_s(buckets, 0.5) == pytest.approx(0.015)
    assert quantile_s(buckets, 0.25) == pytest.approx(0.01)
    assert quantile_s(buckets, 1.0) == pytest.approx(0.05)
    assert quantile_s({0.01: 0.0, float("inf"): 5.0}, 0.5) == float("inf")


def test_the_table_has_a_line_for_each_measure_and_a_column_for_each_profile() -> None:
    lines = report([measured(), measured()]).splitlines()
    assert lines[0] == "| profile | plain | plain |"
    found = {cells[0].strip(): cells[1].strip() for cells in (line.strip("|").split("|") for line in lines[2:])}
    assert found["added"] == "10.0, 19.0"
    assert found["framework, by the service's own measure"] == "10.0, 19.0"
    assert found["added by the service"] == "5.0, 18.5"
    assert found["kept"] == "75%"
    assert found["answers of one token in a second, 32 clients"] == "200"


class Contender:
    """Takes the time that it is told, and remembers when it was asked."""

    def __init__(self, name: str, asked: list[str]) -> None:
        self._name, self._asked = name, asked

    def generate(self, prompts: list[str], *, concurrency: int, max_tokens: int) -> tuple[float, list[Sample]]:
        self._asked.append(f"{self._name} {prompts[0][:4]} {concurrency} {max_tokens}")
        return 1.0, [Sample(0.0, 0.1, 1.0, max_tokens) for _ in prompts]


def test_both_take_turns_with_the_same_prompts_and_the_first_changes() -> None:
    asked: list[str] = []
    one = Measured("plain")
    for number in (3, 13):
        overhead.take_turn(one, Contender("service", asked), Contender("engine", asked), number=number, concurrency=1)
    assert asked == ["engine 3.0. 1 16", "service 3.0. 1 16", "service 13.0 1 16", "engine 13.0 1 16"]
    assert len(one.added_ms()) == 32
