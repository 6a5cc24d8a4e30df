"""The examples that the reference pages show of these routes."""

from typing import Any

ACCOUNT: dict[str, Any] = {
    "object": "account",
    "id": "acme",
    "name": "Acme Ltd.",
    "credit": 25000,
    "reserved": 0,
    "created_at": "2026-01-31T12:00:00Z",
    "closed_at": None,
}
LIMITS: dict[str, Any] = {
    "aitextgen": {
        "windows": [{"name": "minute", "quota": 20, "period_s": 60, "counts": "requests"}],
        "max_concurrent": 4,
    }
}
KEY: dict[str, Any] = {
    "object": "key",
    "id": "0NPvBYYJqMZjhFkd9",
    "account": "acme",
    "name": "production",
    "scopes": ["inference"],
    "models": None,
    "limits": LIMITS,
    "budget": 10000.5,
    "spent": 0,
    "reserved": 0,
    "created_at": "2026-01-31T12:00:00Z",
    "expires_at": None,
    "revoked_at": None,
    "last_used_at": None,
    "old_secret_valid_until": None,
}
NEW_KEY: dict[str, Any] = {**KEY, "key": "tt_0NPvBYYJqMZjhFkd9_..."}
