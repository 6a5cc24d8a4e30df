"""Which SQLite is used, and how its connections are set up; the reasons stand with each setting."""

import importlib
import importlib.util
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import URL, create_engine, event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from serve_app.config import SetupError
from serve_app.stores.backend import Failure

MIN_VERSION = (3, 51, 3)
"""Before this version, two connections that write to a database in WAL mode at the same time could corrupt it."""

_BUSY_TIMEOUT_S = 10
_IS_WRITE = "tritext_write"
_MAY_BE_LOST = "tritext_may_be_lost"
_OPTIONS: Mapping[str, Any] = {"hide_parameters": True}  # they would stand in the text of errors, which is logged
# Primary result codes, https://sqlite.org/rescode.html
_ROLLED_BACK_CODES = frozenset({5, 6})  # busy, locked
_UNAVAILABLE_CODES = frozenset({7, 8, 10, 11, 13, 14, 26})
"""No memory, read-only, I/O error, corrupt, disk full, cannot be opened, not a database."""


class SQLite:
    """One file, for the processes of one machine; see `serve_app.stores.backend.Backend`."""

    read_options: Mapping[str, Any] = {_IS_WRITE: False}
    write_options: Mapping[str, Any] = {_IS_WRITE: True}
    passing_options: Mapping[str, Any] = {_IS_WRITE: True, _MAY_BE_LOST: True}
    has_one_writer = True
    migrates_at_start = True

    def create_engine(self, url: URL) -> AsyncEngine:
        if not url.database or url.database == ":memory:":
            raise SetupError("an SQLite database must be a file, which several processes open: sqlite:///path/file.db")
        use_safe_sqlite()
        Path(url.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        engine = create_async_engine(url.set(drivername="sqlite+aiosqlite"), pool_timeout=10, **_OPTIONS)
        _configure(engine.sync_engine)
        return engine

    def create_blocking_engine(self, url: URL) -> Engine:
        engine = create_engine(url.set(drivername="sqlite+pysqlite"), pool_size=1, max_overflow=0, **_OPTIONS)
        _configure(engine)
        return engine

    def failure(self, error: DBAPIError) -> Failure | None:
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
        if code in _ROLLED_BACK_CODES:
            return Failure.ROLLED_BACK
        return Failure.UNAVAILABLE if code in _UNAVAILABLE_CODES else None

    def lock_schema(self, connection: Connection) -> None:
        """A write transaction is alone already."""


def use_safe_sqlite() -> None:
    """Lets the `sqlite3` of this process be `pysqlite3`, which brings an SQLite of its own, where Python's is too old.

    It must run before aiosqlite is imported, which takes hold of `sqlite3`. Raises SetupError.
    """
    if "aiosqlite" not in sys.modules and importlib.util.find_spec("pysqlite3") is not None:
        sys.modules["sqlite3"] = importlib.import_module("pysqlite3")
        sys.modules["sqlite3.dbapi2"] = importlib.import_module("pysqlite3.dbapi2")
    check_version(importlib.import_module("aiosqlite").core.sqlite3.sqlite_version_info)


def check_version(version: tuple[int, ...]) -> None:
    """Raises SetupError for a version that could lose data."""
    if version < MIN_VERSION:
        raise SetupError(
            f"SQLite {'.'.join(map(str, version))} can corrupt a database that several processes write; "
            f"{'.'.join(map(str, MIN_VERSION))} or later is needed: install the Python package pysqlite3"
        )


def _configure(engine: Engine) -> None:
    """Sets up every connection of the engine, and makes transactions that write take their lock at the start."""
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)


def _on_connect(connection: Any, _record: object) -> None:
    # The driver would begin transactions by itself, too late and without a lock: `_on_begin` does it.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout = {_BUSY_TIMEOUT_S * 1000}",  # to wait for another process's write
        "synchronous = FULL",  # what is committed survives a power cut
        "foreign_keys = ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    _use_wal(cursor)
    cursor.close()


def _use_wal(cursor: Any) -> None:
    """Lets readers never wait for the writer. The mode stays with the file."""
    deadline = time.monotonic() + _BUSY_TIMEOUT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except Exception as error:
            # SQLite's own timeout does not cover a file whose mode another connection changes at this moment.
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _ROLLED_BACK_CODES or time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def _on_begin(connection: Connection) -> None:
    options = connection.get_execution_options()
    # In WAL mode the next commit that waits for the disk takes what was committed before it along.
    synchronous = "NORMAL" if options.get(_MAY_BE_LOST, False) else "FULL"
    if connection.info.get("synchronous", "FULL") != synchronous:
        connection.exec_driver_sql(f"PRAGMA synchronous = {synchronous}")
        connection.info["synchronous"] = synchronous
    # A transaction that reads first and writes later could find the database changed in between and fail.
    is_write = options.get(_IS_WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")
