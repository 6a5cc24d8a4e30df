"""Raw records survive being written and read."""

from pathlib import Path

import pytest

from load_tests.records import (
    FailureRecord,
    MemoryRecord,
    PrefillRecord,
    Record,
    RepeatRecord,
    RunRecord,
    StartRecord,
    append,
    from_line,
    of_type,
    read,
    to_line,
)
from tests.unit.load_tests.factories import cell

_RECORDS: list[Record] = [
    RunRecord("python -m x", "2030-01-01T00:00:00+00:00", {"cores": 2, "flags": ["avx2"]}, {"a": {"torch": "2"}}),
    StartRecord("a", 0, 1.5),
    cell(),
    PrefillRecord("a", 0, 64, (0.1, 0.2)),
    RepeatRecord("a", 0, (0.5, 0.6), (0.1, 0.2)),
    MemoryRecord("a", 0, 32, 10, 20, "python x"),
    FailureRecord("a", 1, "HTTP 500"),
]


@pytest.mark.parametrize("record", _RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_is_one_line_and_the_same_again(record: Record) -> None:
    line = to_line(record)
    assert line.count("\n") == 1
    assert line.endswith("\n")
    assert from_line(line) == record


def test_a_file_keeps_their_order(tmp_path: Path) -> None:
    path = tmp_path / "raw.jsonl"
    for record in _RECORDS:
        append(path, record)
    assert read(path) == _RECORDS
    assert of_type(read(path), StartRecord) == [StartRecord("a", 0, 1.5)]


@pytest.mark.parametrize("line", ["{}", '{"kind": "rumour"}', '{"kind": "start", "contender": "a"}', "no JSON"])
def test_anything_else_is_refused(line: str) -> None:
    with pytest.raises(ValueError):
        from_line(line)
