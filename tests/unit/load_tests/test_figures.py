"""Percentiles within a cell and medians over rounds."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from load_tests.figures import cell_figures, percentile, prefill_figures, process_figures
from load_tests.records import MemoryRecord, PrefillRecord, Sample, StartRecord
from tests.unit.load_tests.factories import cell

_VALUES = st.lists(st.floats(0, 1e6), min_size=1, max_size=50)


def test_percentiles_lie_between_the_nearest_values() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.5
    assert percentile([10.0, 20.0], 95) == pytest.approx(19.5)
    assert percentile([7.0], 95) == 7.0


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


@given(_VALUES)
def test_percentiles_agree_with_the_median_and_grow(values: list[float]) -> None:
    assert percentile(values, 50) == pytest.approx(statistics.median(values))
    assert min(values) <= percentile(values, 5) <= percentile(values, 95) <= max(values)


def test_throughput_is_the_median_over_rounds_of_all_tokens_by_the_wall() -> None:
    cells = [cell(round=number, wall_s=wall_s, num_requests=4) for number, wall_s in enumerate((1.0, 4.0, 2.0))]
    figures = cell_figures(cells)["a server"][8]
    assert (figures.tokens_per_s, figures.slowest, figures.fastest) == (256.0, 128.0, 512.0)
    assert figures.num_rounds == 3


def test_times_run_from_sending_and_per_token_from_the_first_to_the_last() -> None:
    samples = (Sample(10.0, 10.05, 11.32, 128), Sample(0.0, 0.1, 1.37, 128))
    figures = cell_figures([cell(samples=samples)])["a server"][8]
    assert figures.ttft_p50_ms == pytest.approx(75)
    assert figures.ttft_p95_ms == pytest.approx(97.5)
    assert figures.per_token_p50_ms == pytest.approx(10)


def test_a_single_token_has_no_time_between_tokens() -> None:
    figures = cell_figures([cell(samples=(Sample(0.0, 0.1, 0.1, 1),))])["a server"][8]
    assert figures.per_token_p50_ms == 0


def test_the_most_disturbed_round_is_shown() -> None:
    cells = [cell(round=number, wall_s=2.0, other_cpu_s=other) for number, other in enumerate((0.1, 1.0, 0.0))]
    assert cell_figures(cells)["a server"][8].other_cores == 0.5


def test_memory_is_that_after_the_load_with_the_most_clients() -> None:
    records = [
        StartRecord("a", 0, 3.0),
        StartRecord("a", 1, 1.0),
        MemoryRecord("a", 0, 1, 900, 800, "x"),
        MemoryRecord("a", 0, 32, 600, 500, "x"),
        MemoryRecord("a", 1, 32, 700, 550, "x"),
        StartRecord("never loaded", 0, 1.0),
    ]
    figures = process_figures(records)
    assert list(figures) == ["a"]
    assert (figures["a"].first_token_s, figures["a"].pss_mib, figures["a"].largest_peak_mib) == (2.0, 650, 525)


def test_prefill_is_prompt_tokens_by_the_median_of_all_rounds() -> None:
    records = [PrefillRecord("a", 0, 512, (0.5, 0.4)), PrefillRecord("a", 1, 512, (0.1,))]
    assert prefill_figures(records) == {"a": {512: 1280.0}}
