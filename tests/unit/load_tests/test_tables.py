"""Tables and plots of a run's records."""

from pathlib import Path

import pytest

from load_tests.records import (
    FailureRecord,
    MemoryRecord,
    PrefillRecord,
    Record,
    RepeatRecord,
    RunRecord,
    Sample,
    StartRecord,
    append,
)
from load_tests.report import RAW_NAME, write_report
from load_tests.tables import make_tables
from tests.unit.load_tests.factories import cell

_RECORDS: list[Record] = [
    RunRecord("python -m x", "2030-01-01", {"cores": 2, "flags": ["avx2", "fma"]}, {"ours": {"torch": "2.13"}}),
    StartRecord("ours", 0, 2.25),
    cell(contender="ours", concurrency=1, wall_s=1.0, num_requests=2),
    cell(contender="ours", concurrency=8, wall_s=1.0, num_requests=8),
    MemoryRecord("ours", 0, 8, 600, 500, "python"),
    PrefillRecord("ours", 0, 64, (0.02,)),
    RepeatRecord("ours", 0, (0.3, 0.2, 0.4), (0.04, 0.05, 0.03)),
    cell(contender="theirs", concurrency=8, wall_s=2.0, num_requests=8),
    FailureRecord("theirs", 1, "RuntimeError('out of\nluck')"),
]


def _lines(records: list[Record]) -> list[str]:
    return make_tables(records).splitlines()


def test_throughput_has_a_row_for_each_and_the_ratio_to_the_first() -> None:
    lines = _lines(_RECORDS)
    assert "|  | 1 client | 8 clients | ours ÷ this |" in lines
    assert "| ours | 256 | 1024 |  |" in lines
    assert "| theirs |  | 512 | 2.0 |" in lines


def test_every_kind_of_record_is_shown() -> None:
    lines = _lines(_RECORDS)
    assert "| flags | avx2, fma |" in lines
    assert "| ours | torch 2.13 |" in lines
    assert "| ours | 100, 100 | 100, 100 |" in lines
    assert "| ours | 2.2 | 600 | 500 |" in lines
    assert "| ours | 3200 |" in lines
    assert "| ours | 300 | 40 | 7.5 |" in lines
    assert "- theirs, round 2: RuntimeError('out of luck')" in lines


def test_what_a_service_adds_is_the_difference_to_its_engine_where_both_were_measured() -> None:
    service = [cell(contender="ours", concurrency=number, samples=(Sample(1.0, 1.2, 2.0, 9),)) for number in (1, 8)]
    engine = cell(contender="ours, engine in process", concurrency=8, samples=(Sample(0.5, 0.65, 2.0, 9),))
    lines = _lines([*service, engine])
    added = lines[lines.index(next(line for line in lines if "adds to its engine" in line)) :]
    assert "| ours |  | 50, 50 |" in added


def test_what_was_not_measured_has_no_table() -> None:
    page = make_tables([cell()])
    assert "adds to its engine" not in page
    assert "times sooner" not in page
    assert "Prompt tokens" not in page
    assert "Not measured" not in page
    assert "Start and memory" not in page


def test_records_without_a_cell_make_no_page() -> None:
    with pytest.raises(ValueError, match="no cell"):
        make_tables([FailureRecord("a", 0, "nothing worked")])


def test_the_same_records_make_the_same_files(tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        directory = tmp_path / name
        directory.mkdir()
        for record in _RECORDS:
            append(directory / RAW_NAME, record)
        write_report(directory)
        made.append({path.name: path.read_bytes() for path in directory.iterdir()})
    assert made[0] == made[1]
    assert set(made[0]) == {RAW_NAME, "tables.md", "tokens-per-second.svg", "first-token.svg"}
    assert all(len(content) < 60_000 for content in made[0].values())
