"""Query parameters: typed, strict, and described."""

import pytest
from pydantic import Field
from starlette.requests import Request

from deployments.errors import InvalidParameter, InvalidRequest
from serve_app.http.query import QueryModel, parse_query, query_parameters


class Query(QueryModel):
    limit: int = Field(100, ge=1, le=1000, description="How many.")
    after: str | None = Field(None, description="Where to go on.")
    since: int


def request_with(query: str) -> Request:
    return Request({"type": "http", "query_string": query.encode(), "headers": []})


def test_values_are_parsed() -> None:
    assert parse_query(Query, request_with("since=7&after=a%20b")) == Query(since=7, after="a b")


@pytest.mark.parametrize(
    ("query", "words", "param"),
    [
        ("since=7&limit=x", "limit must be an integer", "limit"),
        ("since=7&limit=0", "limit must be at least 1", "limit"),
        ("since=7&limit=2.5", "limit must be an integer", "limit"),
        ("", "since is required", "since"),
        ("since=7&since=8", "since stands twice", "since"),
        ("since=7&after=a%00b", "after must have printable characters only", "after"),
        ("since=7&sort=up", "sort is not a field of this request", "sort"),
    ],
)
def test_faults_are_named(query: str, words: str, param: str) -> None:
    with pytest.raises(InvalidParameter) as refusal:
        parse_query(Query, request_with(query))
    assert refusal.value.message == words
    assert refusal.value.param == param
    assert isinstance(refusal.value, InvalidRequest)


def test_parameters_are_described() -> None:
    limit, after, since = query_parameters(Query)
    assert limit["schema"] == {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}
    assert limit["description"] == "How many."
    assert after == {
        "name": "after",
        "in": "query",
        "required": False,
        "description": "Where to go on.",
        "schema": {"type": "string"},
    }
    assert since["required"] is True
