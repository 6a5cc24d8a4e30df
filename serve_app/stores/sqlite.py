"""Which SQLite is used, and how its connections are set up; the reasons stand with each setting."""

import importlib
import importlib.util
import sys
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

from serve_app.config import SetupError

MIN_VERSION = (3, 51, 3)
"""Before this version, two connections that write to a database in WAL mode at the same time could corrupt it."""

WRITE = {"tritext_write": True}
"""Execution options of a connection whose transactions write."""


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


def configure(engine: Engine) -> None:
    """Sets up every connection of the engine, and makes transactions that write take their lock at the start."""
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)


def _on_connect(connection: Any, _record: object) -> None:
    # The driver would begin transactions by itself, too late and without a lock: `_on_begin` does it.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        "busy_timeout = 10000",  # milliseconds to wait for another process's write
        "journal_mode = WAL",  # readers never wait for the writer
        "synchronous = FULL",  # what is committed survives a power cut
        "foreign_keys = ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _on_begin(connection: Connection) -> None:
    # A transaction that reads first and writes later could find the database changed in between and fail.
    is_write = connection.get_execution_options().get("tritext_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")
