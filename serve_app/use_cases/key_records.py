"""What is stored of an API key, and the seam to where it is stored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from deployments.errors import InvalidParameter
from serve_app.use_cases.audit import AuditEntry
from serve_app.use_cases.callers import Dialect, KeyLimits, Principal, Scope, Window

MAX_BUDGET = 10**18
"""In microcredits; sums of a few such amounts still fit 64 bits."""


@dataclass(frozen=True, slots=True)
class KeyGrant:
    """What a key may do. models: ids, None for all. limits: what replaces the configured ones, by dialect.
    budget: what it may spend in all, in microcredits; None: no bound of its own.
    """

    scopes: frozenset[Scope] = frozenset({Scope.INFERENCE})
    models: frozenset[str] | None = None
    limits: tuple[tuple[Dialect, KeyLimits], ...] = ()
    budget: int | None = None


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What is stored of a key. Times are seconds since 1970, UTC; amounts are microcredits.

    old_digest: of the secret before the last rotation, accepted until `old_valid_until`. spent: by settled requests;
    reserved: held for running ones. account_closed_at: of the account, whose keys are refused from then on.
    """

    id: str
    account: str
    name: str
    digest: bytes
    created_at: float
    grant: KeyGrant = KeyGrant()
    expires_at: float | None = None
    revoked_at: float | None = None
    old_digest: bytes | None = None
    old_valid_until: float | None = None
    last_used_at: float | None = None
    spent: int = 0
    reserved: int = 0
    account_closed_at: float | None = None

    def is_valid(self, now: float) -> bool:
        is_ended = self.revoked_at is not None or self.account_closed_at is not None
        return not is_ended and (self.expires_at is None or now < self.expires_at)

    def accepts_old_secret(self, now: float) -> bool:
        return self.old_valid_until is not None and now < self.old_valid_until

    def principal(self) -> Principal:
        return Principal(self.account, self.id, self.grant.scopes, self.grant.models, self.grant.limits)


class KeyStore(Protocol):
    """Where key records live. Every method returns once its effect, and the audit entry with it, outlives a crash."""

    async def add(self, record: KeyRecord, audit: AuditEntry) -> None:
        """Stores a new record; ids are unique. Raises NotFound where there is no such account or it is closed."""

    async def get(self, key_id: str) -> KeyRecord | None:
        """The record of this id."""

    async def list(self, account: str | None, *, after: str | None = None, limit: int = 1000) -> Sequence[KeyRecord]:
        """The records of one account, or all, oldest first; `after`: those that follow this key."""

    async def change(self, key_id: str, grant: KeyGrant, audit: AuditEntry) -> bool:
        """Replaces the grant. False where there is no such key."""

    async def rotate(self, key_id: str, digest: bytes, *, old_valid_until: float, audit: AuditEntry) -> bool:
        """Makes the present digest the old one. False where there is no such key."""

    async def revoke(self, key_id: str, revoked_at: float, audit: AuditEntry) -> bool:
        """Marks the key revoked, keeping the time of an earlier revocation. False where there is no such key."""

    async def touch(self, last_used_at: Mapping[str, float]) -> None:
        """Notes when keys, by id, were last used; a later time that is noted already stays."""


def check_grant(grant: KeyGrant) -> None:
    """Raises InvalidParameter, naming the field, for what could never be meant."""
    if not grant.scopes:
        raise InvalidParameter("a key needs at least one scope", "scopes")
    if grant.models is not None and not grant.models:
        raise InvalidParameter("models must name at least one model, or be left out to allow all", "models")
    if grant.budget is not None and not 0 <= grant.budget <= MAX_BUDGET:
        raise InvalidParameter(f"budget must be between 0 and {MAX_BUDGET // 10**6} credits", "budget")
    for dialect, limits in grant.limits:
        names = [window.name for window in limits.windows]
        if len(set(names)) < len(names):
            raise InvalidParameter(f"two windows of {dialect} have the same name", "limits")
        if limits.max_concurrent is not None and limits.max_concurrent < 0:
            raise InvalidParameter("max_concurrent must not be negative", "limits")
        for window in limits.windows:
            if not 1 <= len(window.name) <= 50 or not window.name.isascii() or not window.name.isalnum():
                raise InvalidParameter("a window's name must have between 1 and 50 letters or digits", "limits")
            if window.quota < 0 or not 1 <= window.period_s <= 366 * 86400:
                raise InvalidParameter("a window needs a quota of 0 or more and a period of 1 s to 366 days", "limits")


def describe_grant(grant: KeyGrant) -> dict[str, Any]:
    """The grant as JSON, in an order that depends on nothing else."""
    return {
        "scopes": sorted(scope.value for scope in grant.scopes),
        "models": None if grant.models is None else sorted(grant.models),
        "limits": {dialect.value: describe_limits(limits) for dialect, limits in grant.limits},
        "budget": grant.budget,
    }


def describe_limits(limits: KeyLimits) -> dict[str, Any]:
    """The limits as JSON."""
    return {
        "windows": [
            {"name": window.name, "quota": window.quota, "period_s": window.period_s, "counts": window.counts}
            for window in limits.windows
        ],
        "max_concurrent": limits.max_concurrent,
    }


def parse_limits(described: Mapping[str, Any]) -> KeyLimits:
    """What `describe_limits` described."""
    windows = tuple(Window(**window) for window in described["windows"])
    return KeyLimits(windows, described["max_concurrent"])
