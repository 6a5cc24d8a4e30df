"""Which plans a database chooses for the statements that some code runs."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, event

from serve_app.stores.database import Database

_SCAN = re.compile(r"(?:SCAN|Seq Scan on) ([a-z_]+)\b(?! USING)")
_SORT = re.compile(r"USE TEMP B-TREE FOR ORDER BY|\bSort\b")


class Plans:
    """The plans of the statements that were run, as text."""

    def __init__(self) -> None:
        self.statements: list[tuple[str, Any]] = []
        self.plans: list[str] = []

    @property
    def scanned(self) -> set[str]:
        """Tables that are read from one end to the other."""
        return {table for plan in self.plans for table in _SCAN.findall(plan)}

    @property
    def is_sorted(self) -> bool:
        """Whether rows are sorted after they were read: then all must be read before the first is had."""
        return any(_SORT.search(plan) for plan in self.plans)


@contextmanager
def recorded(database: Database, plans: Plans) -> Iterator[None]:
    """Notes every statement that the database runs."""

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        if statement.startswith(("SELECT", "UPDATE", "DELETE", "INSERT")):
            plans.statements.append((statement, parameters[0] if many else parameters))

    engines = (database._engine.sync_engine, database._blocking_engine)
    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    try:
        yield
    finally:
        for engine in engines:
            event.remove(engine, "before_cursor_execute", note)


async def explain(database: Database, plans: Plans) -> None:
    """Asks for the plans of the noted statements."""

    def ask(connection: Connection) -> None:
        prefix = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
        for statement, parameters in plans.statements:
            rows = connection.exec_driver_sql(f"{prefix} {statement}", parameters).all()
            plans.plans.append("\n".join(str(row[-1]) for row in rows))

    async with database.write() as connection:
        await connection.run_sync(ask)
