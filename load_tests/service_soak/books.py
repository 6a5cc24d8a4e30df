"""What the database of a running service says: what is open, what waits, and whether its sums agree. Only reads."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pysqlite3 import dbapi2 as sqlite3

from load_tests.service_soak.exchange import Line

# Each of these must find nothing: sums that are kept beside what they are the sums of.
_DISAGREEMENTS = {
    "an account has not spent the sum of its lines": """
        SELECT id FROM accounts WHERE credit IS NOT NULL AND credit !=
            (SELECT coalesce(sum(amount), 0) FROM credit_grants WHERE account = accounts.id) -
            (SELECT coalesce(sum(cost), 0) FROM ledger WHERE account = accounts.id AND settled_at IS NOT NULL)""",
    "an account holds other than its open lines": """
        SELECT id FROM accounts WHERE reserved !=
            (SELECT coalesce(sum(held), 0) FROM ledger WHERE account = accounts.id AND settled_at IS NULL)""",
    "a key has not spent the sum of its lines": """
        SELECT id FROM keys WHERE spent !=
            (SELECT coalesce(sum(cost), 0) FROM ledger WHERE key_id = keys.id AND settled_at IS NOT NULL)""",
    "a key holds other than its open lines": """
        SELECT id FROM keys WHERE reserved !=
            (SELECT coalesce(sum(held), 0) FROM ledger WHERE key_id = keys.id AND settled_at IS NULL)""",
    "the usage of a key, a model and an API is not the sum of its lines": """
        SELECT key_id, dialect, model FROM (
            SELECT key_id, dialect, model, requests, prompt_tokens, completion_tokens, characters, cost
                FROM usage_by_day
            UNION ALL
            SELECT key_id, dialect, model, -1, -prompt_tokens, -completion_tokens, -characters, -cost
                FROM ledger WHERE settled_at IS NOT NULL)
        GROUP BY key_id, dialect, model
        HAVING sum(requests) != 0 OR sum(prompt_tokens) != 0 OR sum(completion_tokens) != 0
            OR sum(characters) != 0 OR sum(cost) != 0""",
}


@dataclass(frozen=True, slots=True)
class Books:
    """Counts of rows: requests that are open, settled, kept under an Idempotency-Key, still run under one; webhooks
    that are to be sent; jobs that have not ended. `disagreements` say which sums are wrong."""

    open_reservations: int
    settled: int
    kept_answers: int
    running_idempotent: int
    pending_webhooks: int
    open_jobs: int
    owners: int
    disagreements: tuple[str, ...]


def read_books(database: Path) -> Books:
    """All of one moment."""
    with _reading(database) as connection:

        def count(table: str, condition: str) -> int:
            [number] = connection.execute(f"SELECT count(*) FROM {table} WHERE {condition}").fetchone()  # noqa: S608
            return int(number)

        return Books(
            open_reservations=count("ledger", "settled_at IS NULL"),
            settled=count("ledger", "settled_at IS NOT NULL"),
            kept_answers=count("idempotent_requests", "owner IS NULL"),
            running_idempotent=count("idempotent_requests", "owner IS NOT NULL"),
            pending_webhooks=count("webhook_deliveries", "next_at IS NOT NULL"),
            open_jobs=count("jobs", "finished_at IS NULL"),
            owners=count("owners", "TRUE"),
            disagreements=tuple(
                what for what, statement in _DISAGREEMENTS.items() if connection.execute(statement).fetchone()
            ),
        )


def read_lines(database: Path) -> dict[str, list[Line]]:
    """The settled lines of the ledger by the id that the client gave its request."""
    found: dict[str, list[Line]] = defaultdict(list)
    with _reading(database) as connection:
        columns = "id, outcome, prompt_tokens, completion_tokens, characters, cost"
        for line_id, *values in connection.execute(f"SELECT {columns} FROM ledger WHERE settled_at IS NOT NULL"):  # noqa: S608
            found[line_id.partition(".")[0]].append(Line(*values))
    return found


@contextmanager
def _reading(database: Path) -> Iterator[Any]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        yield connection
