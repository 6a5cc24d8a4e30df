"""The ledger and the windows in SQL, grouped; see `serve_app.use_cases.admission.AdmissionStore`."""

import asyncio
import time
from collections.abc import Callable, Sequence

from deployments.errors import StorageError
from serve_app.ledger.entries import Answer, Opening, Operation, Progress, Settlement, Verdict, Visit
from serve_app.limits.windows import Window, WindowStanding, consume
from serve_app.stores import ledger
from serve_app.stores.database import Database
from serve_app.stores.group_commit import GroupCommit


class SqlAdmissionStore:
    """All operations of one process that wait at the same time share a transaction."""

    def __init__(self, database: Database, *, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._now = now
        self._group = GroupCommit[Operation, Answer](self._commit, fatal=(StorageError,))

    async def open(self, opening: Opening) -> Verdict:
        return await self._decide(opening)

    async def visit(self, visit: Visit) -> Verdict:
        return await self._decide(visit)

    async def settle(self, settlement: Settlement) -> bool:
        return await self._group.submit(settlement) is True

    async def record(self, progress: Sequence[Progress]) -> None:
        await asyncio.gather(*map(self._group.submit, progress))

    async def standings(self, key_id: str, dialect: str, windows: Sequence[Window]) -> tuple[WindowStanding, ...]:
        async with self._database.read() as connection:
            states = await connection.run_sync(ledger.read_windows, key_id, dialect)
        return consume(windows, states, requests=0, tokens=0, now=self._now()).standings

    async def _decide(self, operation: Visit | Opening) -> Verdict:
        verdict = await self._group.submit(operation)
        if not isinstance(verdict, Verdict):
            raise TypeError(f"no verdict on {operation}")
        return verdict

    async def _commit(self, operations: Sequence[Operation]) -> Sequence[Answer]:
        # A machine that crashes ends the requests whose admission it forgets; what was delivered must be on disk.
        is_passing = all(isinstance(operation, Visit | Opening) for operation in operations)
        return await self._database.transact_blocking(
            lambda connection: ledger.apply(connection, operations, self._now), is_passing=is_passing
        )
