"""What differs between the databases that the service runs on: how one is opened, and what its errors mean."""

from collections.abc import Mapping
from enum import Enum, auto
from typing import Any, Protocol

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine


class Failure(Enum):
    """An error that is not the statement's fault.

    ROLLED_BACK: the transaction lost to another one and may be run again. UNAVAILABLE: the database does not answer.
    """

    ROLLED_BACK = auto()
    UNAVAILABLE = auto()


class Backend(Protocol):
    """read_options, write_options: execution options of connections for transactions of each kind. passing_options: of
    those whose writes are worth nothing once the machine on which the process runs has crashed.

    has_one_writer: a write transaction is alone in the whole database, so nothing needs to be locked in it.
    migrates_at_start: the schema is brought up to date by whoever opens the database.
    """

    read_options: Mapping[str, Any]
    write_options: Mapping[str, Any]
    passing_options: Mapping[str, Any]
    has_one_writer: bool
    migrates_at_start: bool

    def create_engine(self, url: URL) -> AsyncEngine:
        """Connects to nothing yet. Raises SetupError."""

    def create_blocking_engine(self, url: URL) -> Engine:
        """The same, for one thread that waits for the database's answers."""

    def failure(self, error: DBAPIError) -> Failure | None:
        """What happened, or None where the statement itself is at fault."""

    def lock_schema(self, connection: Connection) -> None:
        """Waits until nobody else changes the schema, and keeps others from it until the transaction ends."""
