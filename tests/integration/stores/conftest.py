"""What the tests of plans share."""

from collections.abc import AsyncIterator

import pytest

from serve_app.stores.database import Database, open_database


@pytest.fixture
async def filled(filled_url: str) -> AsyncIterator[Database]:
    """The database that the module filled."""
    async with open_database(filled_url) as database:
        yield database
