"""Cursors come back as they went out, and nothing else is taken for one; rows in files."""

import base64
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.errors import InvalidParameter
from serve_app.admin.report_wire import (
    LINE_COLUMNS,
    Row,
    as_csv,
    as_json_lines,
    ledger_cursor,
    line_row,
    parse_ledger_cursor,
    parse_usage_cursor,
    usage_cursor,
)
from serve_app.use_cases.callers import Dialect
from serve_app.use_cases.usage import LedgerLine, UsageGroup, UsageQuery, UsageSum

IDS = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1, max_size=30)


def line_of(*, line_id: str = "id", created_at: float = 0.0, cost: int = 0) -> LedgerLine:
    return LedgerLine(line_id, "a", "k", Dialect.INFERKIT, "m", created_at, None, 1, 2, 3, 4, cost, None)


@given(st.lists(st.sampled_from(UsageGroup), unique=True), st.data())
def test_cursor_of_a_sum_comes_back(groups: list[UsageGroup], data: st.DataObject) -> None:
    by = tuple((group, data.draw(IDS)) for group in groups)
    query = UsageQuery(group_by=tuple(groups))
    found = parse_usage_cursor(usage_cursor(UsageSum(by, 1, 2, 3, 4, 5)), query)
    assert found is not None
    assert found.by == by


@given(IDS, st.floats(0, 1e12))
def test_cursor_of_a_line_comes_back(line_id: str, created_at: float) -> None:
    found = parse_ledger_cursor(ledger_cursor(line_of(line_id=line_id, created_at=created_at)))
    assert found is not None
    assert (found.id, found.created_at) == (line_id, created_at)


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"[]", b"{}", b'["a", 1.5]', b'[NaN, "a"]', b'[1.5, "\\ud800"]', b'[1.5, "\\u0000"]', b"[" * 20_000],
)
def test_other_texts_are_no_cursor(content: bytes) -> None:
    with pytest.raises(InvalidParameter):
        parse_ledger_cursor(base64.urlsafe_b64encode(content).decode())


@given(st.text(max_size=50))
def test_no_text_breaks_the_parser(text: str) -> None:
    try:
        parse_usage_cursor(text, UsageQuery(group_by=(UsageGroup.DAY,)))
    except InvalidParameter as refusal:
        assert refusal.param == "after"


async def rows_of(*lines: LedgerLine) -> AsyncIterator[Row]:
    for line in lines:
        yield line_row(line)


async def test_csv_quotes_and_spells_amounts_exactly() -> None:
    line = line_of(line_id='a "quoted", id', cost=10**17 + 1)
    text = b"".join([chunk async for chunk in as_csv(LINE_COLUMNS, rows_of(line))]).decode()
    names, row = text.split("\r\n")[:2]
    assert names == ",".join(LINE_COLUMNS)
    assert row.startswith('"a ""quoted"", id",a,k,inferkit,m,1970-01-01T00:00:00Z,,,2,3,4,')
    assert row.endswith(",0.000001,100000000000.000001")


async def test_many_rows_go_out_in_few_chunks() -> None:
    chunks = [chunk async for chunk in as_json_lines(rows_of(*[line_of()] * 1201))]
    assert [chunk.count(b"\n") for chunk in chunks] == [500, 500, 201]
