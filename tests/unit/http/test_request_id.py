"""Ids of requests: unique whatever the client says, and never longer than the ledger can keep."""

from starlette.requests import Request

from serve_app.http.request_id import unique_request_id
from serve_app.stores.tables import ledger


def test_ids_of_one_client_id_differ_and_fit_the_ledger() -> None:
    request = Request({"type": "http", "state": {"request_id": "x" * 100}})
    ids = {unique_request_id(request) for _ in range(100)}
    assert len(ids) == 100
    assert {len(found) for found in ids} == {133}
    assert ledger.c.id.type.length >= 133
