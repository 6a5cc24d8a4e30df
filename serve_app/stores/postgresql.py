"""How connections to PostgreSQL are set up, and what its errors mean; the reasons stand with each setting."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from serve_app.stores.backend import Failure

_SESSION = {
    "lock_timeout": "10s",  # as long as SQLite waits for another's write
    "statement_timeout": "30s",
    "idle_in_transaction_session_timeout": "30s",  # a process that was paused must not hold rows for ever
    "timezone": "UTC",
}
# A server that vanished without a word is noticed within 15 seconds. Ignored on Unix sockets.
_TCP = {
    "tcp_user_timeout": 10_000,  # milliseconds, of sent bytes that are not acknowledged
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 2,
}
_SCHEMA_LOCK = 7_406_391_502_884_501_329
"""Any number that no other user of the server's advisory locks takes."""

# https://www.postgresql.org/docs/current/errcodes-appendix.html
_ROLLED_BACK_STATES = frozenset({"40001", "40P01", "55P03"})  # serialization, deadlock, lock not available
_UNAVAILABLE_STATES = frozenset({"25P03", "25P04"})  # the transaction took too long
_UNAVAILABLE_CLASSES = frozenset({"08", "53", "57", "58"})  # connection, resources, operator, system


class PostgreSQL:
    """A server, for the processes of any number of machines; see `serve_app.stores.backend.Backend`."""

    read_options: Mapping[str, Any] = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    write_options: Mapping[str, Any] = {"isolation_level": "READ COMMITTED"}
    # A server that crashes takes none of the service's processes with it: they go on and rely on what they wrote.
    passing_options = write_options
    has_one_writer = False
    migrates_at_start = False

    def create_engine(self, url: URL) -> AsyncEngine:
        url, options = _connection(url)
        return create_async_engine(url, pool_size=5, max_overflow=5, pool_timeout=10, **options)

    def create_blocking_engine(self, url: URL) -> Engine:
        url, options = _connection(url)
        # A connection that was lost shows itself, and the transaction is run again: cheaper than to ask before each.
        return create_engine(url, pool_size=1, max_overflow=0, **options | {"pool_pre_ping": False})

    def failure(self, error: DBAPIError) -> Failure | None:
        state = getattr(error.orig, "sqlstate", None)
        if state is None:  # the client's own error: no connection could be made, or it was lost
            is_lost = error.connection_invalidated or isinstance(error, OperationalError)
            return Failure.UNAVAILABLE if is_lost else None
        if state in _ROLLED_BACK_STATES:
            return Failure.ROLLED_BACK
        is_unavailable = state in _UNAVAILABLE_STATES or state[:2] in _UNAVAILABLE_CLASSES
        return Failure.UNAVAILABLE if is_unavailable else None

    def lock_schema(self, connection: Connection) -> None:
        for name in ("lock_timeout", "statement_timeout"):  # migrations take as long as they take
            connection.execute(text(f"SET LOCAL {name} = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _SCHEMA_LOCK})


def _connection(url: URL) -> tuple[URL, dict[str, Any]]:
    settings = " ".join(f"-c {name}={value}" for name, value in _SESSION.items())
    arguments = {"connect_timeout": 5, **_TCP, "application_name": "tritext", "options": settings, **url.query}
    return url.set(drivername="postgresql+psycopg"), {
        "connect_args": arguments,
        "pool_pre_ping": True,  # a server that was restarted costs no request its answer
        "hide_parameters": True,  # they would stand in the text of errors, which is logged
    }
