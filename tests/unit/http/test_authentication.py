"""Which Authorization headers present a key."""

import pytest
from starlette.requests import Request

from deployments.errors import Unauthenticated
from serve_app.http.authentication import authenticate
from serve_app.use_cases.callers import Dialect
from tests.api.conftest import make_services
from tests.fakes import KEY


def request_with(header: str | None) -> Request:
    headers = [(b"authorization", header.encode())] if header is not None else []
    return Request({"type": "http", "headers": headers})


@pytest.mark.parametrize("header", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER  {KEY} "])
@pytest.mark.parametrize("allow_raw_key", [False, True])
async def test_bearer_key_is_taken(header: str, allow_raw_key: bool) -> None:
    caller = await authenticate(request_with(header), make_services(), Dialect.INFERKIT, allow_raw_key=allow_raw_key)
    assert caller.principal.key_id == KEY
    assert caller.dialect is Dialect.INFERKIT


async def test_raw_key_is_taken_where_allowed_only() -> None:
    assert (
        await authenticate(request_with(KEY), make_services(), Dialect.INFERKIT, allow_raw_key=True)
    ).principal.key_id == KEY
    with pytest.raises(Unauthenticated):
        await authenticate(request_with(KEY), make_services(), Dialect.INFERKIT)


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer wrong", f"Token {KEY}", f"{KEY} {KEY}", f"Bearer a {KEY}"]
)
@pytest.mark.parametrize("allow_raw_key", [False, True])
async def test_everything_else_is_unauthenticated(header: str | None, allow_raw_key: bool) -> None:
    with pytest.raises(Unauthenticated):
        await authenticate(request_with(header), make_services(), Dialect.INFERKIT, allow_raw_key=allow_raw_key)
