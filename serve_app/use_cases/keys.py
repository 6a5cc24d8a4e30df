"""API keys: create, list, revoke, and tell who presents one. Knows no HTTP and no SQL.

Only a keyed hash of each key is stored (HMAC-SHA256 under the service's pepper). A slow password hash would protect
a guessable secret; with 256 random bits it would only make refusing strangers expensive.
"""

import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from deployments.errors import InvalidParameter, NotFound, Unauthenticated
from serve_app.use_cases.callers import Principal
from serve_app.use_cases.key_format import generate_key, parse_key

CACHE_TTL_S = 5.0
"""How long a process may go on accepting a key after it was revoked, in seconds."""

_MAX_CACHED_KEYS = 10_000
_MAX_NAME_LENGTH = 200
_DIGEST_OF_NO_KEY = bytes(hashlib.sha256().digest_size)


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What is stored of a key. Times are seconds since 1970, UTC."""

    id: str
    account: str
    name: str
    digest: bytes
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None

    def is_valid(self, now: float) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class KeyStore(Protocol):
    """Where key records live. Every method returns once its effect outlives a crash."""

    async def add(self, record: KeyRecord) -> None:
        """Stores a new record; ids are unique."""

    async def get(self, key_id: str) -> KeyRecord | None:
        """The record of this id."""

    async def list(self, account: str | None) -> Sequence[KeyRecord]:
        """The records of one account, or all, oldest first."""

    async def revoke(self, key_id: str, revoked_at: float) -> bool:
        """Marks the key revoked, keeping the time of an earlier revocation. False where there is no such key."""


class Keys:
    """The keys of one service.

    A record is cached for `CACHE_TTL_S` after it was read, so a busy key costs no query for each request, and a
    revoked one stops working within that time in every process. Unknown keys are not cached: a new key works at once.
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

    async def create(self, account: str, name: str, *, expires_at: float | None = None) -> tuple[str, KeyRecord]:
        """A new key of the account: its text, which cannot be had again, and its record.

        Raises InvalidParameter where account or name is not between 1 and 200 printable characters, or the key would
        be expired from the start.
        """
        created_at = self._now()
        _check_name(account, "account")
        _check_name(name, "name")
        if expires_at is not None and not expires_at > created_at:
            raise InvalidParameter("expires_at must be in the future", "expires_at")
        key = generate_key()
        record = KeyRecord(key.id, account, name, self._digest(key.text), created_at, expires_at)
        await self._store.add(record)
        return key.text, record

    async def list(self, account: str | None = None) -> Sequence[KeyRecord]:
        """The keys of one account, or of all, oldest first; revoked ones too."""
        return await self._store.list(account)

    async def revoke(self, key_id: str) -> None:
        """Ends a key for good; to do it again changes nothing. Raises NotFound."""
        if not await self._store.revoke(key_id, self._now()):
            raise NotFound(f"there is no key with the id {key_id!r}")
        self._cache.pop(key_id, None)

    async def authenticate(self, key: str) -> Principal:
        """Who owns this key. Raises Unauthenticated when it is malformed, unknown, expired or revoked.

        The answer does not tell which of these it was, neither by its text nor by the time that a comparison takes.
        """
        parsed = parse_key(key)
        if parsed is None:
            raise _unauthenticated()
        record = await self._record(parsed.id)
        expected = _DIGEST_OF_NO_KEY if record is None else record.digest
        is_owner = hmac.compare_digest(self._digest(parsed.text), expected)
        if record is None or not is_owner or not record.is_valid(self._now()):
            raise _unauthenticated()
        return Principal(record.account, record.id)

    async def _record(self, key_id: str) -> KeyRecord | None:
        asked_at = self._monotonic()
        cached = self._cache.get(key_id)
        if cached is not None and asked_at - cached[0] < CACHE_TTL_S:
            return cached[1]
        record = await self._store.get(key_id)
        if record is None:
            return None
        # The age counts from before the query: a revocation that the query missed came after `asked_at`.
        self._cache[key_id] = (asked_at, record)
        self._cache.move_to_end(key_id)
        if len(self._cache) > _MAX_CACHED_KEYS:
            self._cache.popitem(last=False)
        return record

    def _digest(self, key_text: str) -> bytes:
        return hmac.digest(self._pepper, key_text.encode("ascii"), "sha256")


def _unauthenticated() -> Unauthenticated:
    return Unauthenticated("the API key is malformed, unknown, expired or revoked")


def _check_name(value: str, param: str) -> None:
    if not 1 <= len(value) <= _MAX_NAME_LENGTH or not value.isprintable():
        raise InvalidParameter(f"{param} must have between 1 and {_MAX_NAME_LENGTH} printable characters", param)
