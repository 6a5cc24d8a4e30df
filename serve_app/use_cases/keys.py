"""API keys: create, change, rotate, revoke, and tell who presents one. Knows no HTTP and no SQL.

Only a keyed hash of each key is stored (HMAC-SHA256 under the service's pepper). A slow password hash would protect
a guessable secret; with 256 random bits it would only make refusing strangers expensive.
"""

import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from deployments.errors import InvalidParameter, NotFound, Unauthenticated
from serve_app.use_cases.audit import AuditEntry
from serve_app.use_cases.callers import Principal
from serve_app.use_cases.key_format import generate_key, parse_key
from serve_app.use_cases.key_records import KeyGrant, KeyRecord, KeyStore, check_grant, describe_grant

CACHE_TTL_S = 5.0
"""How long a process may go on accepting a key after it was changed or revoked, in seconds."""

MAX_NAME_LENGTH = 200

_MAX_CACHED_KEYS = 10_000
_DIGEST_OF_NO_KEY = bytes(hashlib.sha256().digest_size)
_END_OF_CALENDAR = 253_370_764_800.0  # the year 9999; later times cannot be written down


class Keys:
    """The keys of one service. `actor` names who does an administrative act, for the audit log.

    A record is cached for `CACHE_TTL_S` after it was read, so a busy key costs no query for each request, and a
    revoked one stops working within that time in every process. New keys and new secrets work at once everywhere.
    """

    def __init__(
        self,
        store: KeyStore,
        pepper: bytes,
        *,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._pepper = pepper
        self._now = now
        self._monotonic = monotonic
        self._cache: OrderedDict[str, tuple[float, KeyRecord]] = OrderedDict()
        self._used: dict[str, float] = {}

    async def create(
        self,
        account: str,
        name: str,
        *,
        actor: str,
        grant: KeyGrant = KeyGrant(),  # noqa: B008  # frozen
        expires_at: float | None = None,
    ) -> tuple[str, KeyRecord]:
        """A new key of the account: its text, which cannot be had again, and its record.

        Raises InvalidParameter where the name is not between 1 and 200 printable characters, the grant makes no
        sense, or the key would be expired from the start; NotFound where there is no such account or it is closed.
        """
        now = self._now()
        check_name(name, "name")
        check_grant(grant)
        if expires_at is not None and not now < expires_at < _END_OF_CALENDAR:
            raise InvalidParameter("expires_at must be in the future, and before the year 9999", "expires_at")
        key = generate_key()
        record = KeyRecord(key.id, account, name, self._digest(key.text), now, grant=grant, expires_at=expires_at)
        details = {"account": account, "name": name, "expires_at": expires_at, **describe_grant(grant)}
        await self._store.add(record, AuditEntry(now, actor, "key.create", key.id, details))
        return key.text, record

    async def get(self, key_id: str) -> KeyRecord:
        """The record as it is now. Raises NotFound."""
        record = await self._store.get(key_id)
        if record is None:
            raise _no_such_key(key_id)
        return record

    async def list(
        self, account: str | None = None, *, after: str | None = None, limit: int = 1000
    ) -> Sequence[KeyRecord]:
        """The keys of one account, or of all, oldest first, revoked ones too; `after`: those after this key."""
        return await self._store.list(account, after=after, limit=limit)

    async def change(self, key_id: str, grant: KeyGrant, *, actor: str) -> KeyRecord:
        """Replaces what the key may do. Raises NotFound; InvalidParameter where the grant makes no sense."""
        check_grant(grant)
        audit = AuditEntry(self._now(), actor, "key.change", key_id, describe_grant(grant))
        if not await self._store.change(key_id, grant, audit):
            raise _no_such_key(key_id)
        self._cache.pop(key_id, None)
        return await self.get(key_id)

    async def rotate(self, key_id: str, *, overlap_s: float, actor: str) -> tuple[str, KeyRecord]:
        """A new secret for the key, whose text cannot be had again; the old one is accepted for `overlap_s` more.

        Id, limits, budget and usage stay, so that rotating neither resets nor doubles what the key may do. A secret
        that was rotated out before stops working. Raises InvalidParameter; NotFound, also for a key that has ended.
        """
        now = self._now()
        if not 0 <= overlap_s <= 366 * 86400:
            raise InvalidParameter("overlap must be between 0 seconds and 366 days", "overlap")
        if not (await self.get(key_id)).is_valid(now):
            raise _no_such_key(key_id)
        key = generate_key(key_id)
        audit = AuditEntry(now, actor, "key.rotate", key_id, {"old_valid_until": now + overlap_s})
        if not await self._store.rotate(key_id, self._digest(key.text), old_valid_until=now + overlap_s, audit=audit):
            raise _no_such_key(key_id)
        self._cache.pop(key_id, None)
        return key.text, await self.get(key_id)

    async def revoke(self, key_id: str, *, actor: str) -> None:
        """Ends a key for good; to do it again changes nothing. Raises NotFound."""
        now = self._now()
        if not await self._store.revoke(key_id, now, AuditEntry(now, actor, "key.revoke", key_id, {})):
            raise _no_such_key(key_id)
        self._cache.pop(key_id, None)

    async def authenticate(self, key: str) -> Principal:
        """Who owns this key. Raises Unauthenticated when it is malformed, unknown, expired or revoked, or its account
        is closed.

        The answer does not tell which of these it was, neither by its text nor by the time that a comparison takes.
        """
        parsed = parse_key(key)
        if parsed is None:
            raise _unauthenticated()
        digest = self._digest(parsed.text)
        cached = self._cached(parsed.id)
        record = cached or await self._read(parsed.id)
        if cached is not None and not self._is_owner(cached, digest):
            record = await self._read(parsed.id)  # another process may have rotated it
        if not self._is_owner(record, digest) or record is None or not record.is_valid(self._now()):
            raise _unauthenticated()
        self._used[record.id] = self._now()
        return record.principal()

    async def save_last_used(self) -> None:
        """Writes down when keys were last used, since it was last called; no request waits for this."""
        used, self._used = self._used, {}
        if used:
            await self._store.touch({key_id: at - at % 60 for key_id, at in used.items()})

    def _cached(self, key_id: str) -> KeyRecord | None:
        read_at, record = self._cache.get(key_id, (0.0, None))
        return record if record is not None and self._monotonic() - read_at < CACHE_TTL_S else None

    async def _read(self, key_id: str) -> KeyRecord | None:
        asked_at = self._monotonic()
        record = await self._store.get(key_id)
        if record is None:
            return None
        # The age counts from before the query: a revocation that the query missed came after `asked_at`.
        self._cache[key_id] = (asked_at, record)
        self._cache.move_to_end(key_id)
        if len(self._cache) > _MAX_CACHED_KEYS:
            self._cache.popitem(last=False)
        return record

    def _is_owner(self, record: KeyRecord | None, digest: bytes) -> bool:
        if record is None:
            return hmac.compare_digest(digest, _DIGEST_OF_NO_KEY)
        is_current = hmac.compare_digest(digest, record.digest)
        is_old = hmac.compare_digest(digest, record.old_digest or _DIGEST_OF_NO_KEY)
        return is_current or (is_old and record.accepts_old_secret(self._now()))

    def _digest(self, key_text: str) -> bytes:
        return hmac.digest(self._pepper, key_text.encode("ascii"), "sha256")


def check_name(value: str, param: str) -> None:
    """Raises InvalidParameter."""
    if not 1 <= len(value) <= MAX_NAME_LENGTH or not value.isprintable():
        raise InvalidParameter(f"{param} must have between 1 and {MAX_NAME_LENGTH} printable characters", param)


def _unauthenticated() -> Unauthenticated:
    return Unauthenticated("the API key is malformed, unknown, expired or revoked")


def _no_such_key(key_id: str) -> NotFound:
    return NotFound(f"there is no key with the id {key_id!r}")
