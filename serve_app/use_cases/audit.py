"""The audit log: who changed what in the administration, and when. Rows are only ever added."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

COMMAND_LINE = "command line"
"""The actor of what is done by the command line tool; over HTTP it is the id of the key that was presented."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One administrative act, written in the transaction that does it.

    at: seconds since 1970, UTC. action: such as `key.create`. target: the id of what was changed. details: what it was
    changed to, as JSON; never a secret.
    """

    at: float
    actor: str
    action: str
    target: str
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AuditRow:
    """An entry as it was kept; ids grow with time."""

    id: int
    entry: AuditEntry


class AuditLog(Protocol):
    """Reading the log; it is written by the stores of what it tells about."""

    async def page(self, *, before: int | None = None, limit: int = 100) -> Sequence[AuditRow]:
        """The newest rows, newest first, of those with an id below `before`."""
