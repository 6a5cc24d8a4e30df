"""Who asks, and in which dialect: settled once for each request, before its body is read. Pure; knows no HTTP."""

import time
from dataclasses import dataclass, field
from enum import StrEnum

from serve_app.limits.windows import Window as Window
from serve_app.limits.windows import WindowStanding as WindowStanding


class Dialect(StrEnum):
    """The API that a request speaks; limits and prices are set for each."""

    AITEXTGEN = "aitextgen"
    INFERKIT = "inferkit"
    TOTALGPT = "totalgpt"


class Scope(StrEnum):
    """What a key may be used for. ADMIN: the whole service's accounts, keys, credits, usage and audit log."""

    INFERENCE = "inference"
    FINE_TUNE = "fine-tune"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What replaces the configured limits of a dialect for one key. None: no bound."""

    windows: tuple[Window, ...] = ()
    max_concurrent: int | None = None


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls: the account that is charged and isolated, the key that was presented, and what it may do.

    models: the ids of the models that it may use, None for all. limits: the key's own, by dialect.
    """

    account: str
    key_id: str
    scopes: frozenset[Scope] = frozenset({Scope.INFERENCE})
    models: frozenset[str] | None = None
    limits: tuple[tuple[Dialect, KeyLimits], ...] = ()


@dataclass(slots=True)
class Caller:
    """One request's caller.

    request_id: unique to this request; it names the work done for it and its line in the ledger. limits: how the
    key's windows stand, once the request was counted (also by a refusal); None before that. received_at: when the
    request came, in seconds of the monotonic clock.
    """

    request_id: str
    dialect: Dialect
    principal: Principal
    limits: tuple[WindowStanding, ...] | None = None
    received_at: float = field(default_factory=time.monotonic, compare=False)

    @property
    def account(self) -> str:
        return self.principal.account
