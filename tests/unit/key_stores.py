"""A key store in memory, which promises what the real one promises (tests/unit/stores/test_keys.py holds both)."""

from collections.abc import Sequence
from dataclasses import replace

from serve_app.use_cases.keys import KeyRecord


class InMemoryKeyStore:
    """Counts how often it is asked for a key."""

    def __init__(self) -> None:
        self._records: dict[str, KeyRecord] = {}
        self.num_gets = 0

    async def add(self, record: KeyRecord) -> None:
        if record.id in self._records:
            raise KeyError(record.id)
        self._records[record.id] = record

    async def get(self, key_id: str) -> KeyRecord | None:
        self.num_gets += 1
        return self._records.get(key_id)

    async def list(self, account: str | None) -> Sequence[KeyRecord]:
        records = sorted(self._records.values(), key=lambda record: (record.created_at, record.id))
        return [record for record in records if account in (None, record.account)]

    async def revoke(self, key_id: str, revoked_at: float) -> bool:
        record = self._records.get(key_id)
        if record is None:
            return False
        if record.revoked_at is None:
            self._records[key_id] = replace(record, revoked_at=revoked_at)
        return True
