"""A key store in memory, which promises what the real one promises (tests/integration/stores/test_keys.py)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from deployments.errors import NotFound
from serve_app.use_cases.audit import AuditEntry
from serve_app.use_cases.key_records import KeyGrant, KeyRecord


class InMemoryKeyStore:
    """Counts how often it is asked for a key. accounts: those that exist; None: any."""

    def __init__(self, *, accounts: Sequence[str] | None = None) -> None:
        self._accounts = accounts
        self._records: dict[str, KeyRecord] = {}
        self.num_gets = 0
        self.audited: list[AuditEntry] = []

    async def add(self, record: KeyRecord, audit: AuditEntry) -> None:
        if self._accounts is not None and record.account not in self._accounts:
            raise NotFound("account")
        if record.id in self._records:
            raise KeyError(record.id)
        self._records[record.id] = record
        self.audited.append(audit)

    async def get(self, key_id: str) -> KeyRecord | None:
        self.num_gets += 1
        return self._records.get(key_id)

    async def list(self, account: str | None, *, after: str | None = None, limit: int = 1000) -> Sequence[KeyRecord]:
        records = sorted(self._records.values(), key=lambda record: (record.created_at, record.id))
        if after is not None:
            last = self._records[after]
            records = [record for record in records if (record.created_at, record.id) > (last.created_at, last.id)]
        return [record for record in records if account in (None, record.account)][:limit]

    async def change(self, key_id: str, grant: KeyGrant, audit: AuditEntry) -> bool:
        return self._replace(key_id, audit, grant=grant)

    async def rotate(self, key_id: str, digest: bytes, *, old_valid_until: float, audit: AuditEntry) -> bool:
        old = self._records.get(key_id)
        old_digest = None if old is None else old.digest
        return self._replace(key_id, audit, digest=digest, old_digest=old_digest, old_valid_until=old_valid_until)

    async def revoke(self, key_id: str, revoked_at: float, audit: AuditEntry) -> bool:
        old = self._records.get(key_id)
        if old is not None and old.revoked_at is not None:
            revoked_at = old.revoked_at
        return self._replace(key_id, audit, revoked_at=revoked_at)

    async def touch(self, last_used_at: Mapping[str, float]) -> None:
        for key_id, at in last_used_at.items():
            record = self._records[key_id]
            self._records[key_id] = replace(record, last_used_at=max(at, record.last_used_at or 0.0))

    def _replace(self, key_id: str, audit: AuditEntry, **changes: object) -> bool:
        record = self._records.get(key_id)
        if record is None:
            return False
        self._records[key_id] = replace(record, **changes)  # type: ignore[arg-type]
        self.audited.append(audit)
        return True
