"""Keys on the wire: what a request may say of one, and how one is shown. Knows no routes."""

from typing import Any, Literal

from pydantic import Field

from deployments.errors import InvalidParameter, ModelNotFound
from serve_app.admin.amounts import Credits, to_credits, to_microcredits
from serve_app.http.times import to_iso
from serve_app.http.wire_model import WireModel
from serve_app.use_cases.callers import Dialect, KeyLimits, Scope, Window
from serve_app.use_cases.key_records import KeyGrant, KeyRecord, describe_limits
from serve_app.use_cases.models import ModelCatalog

ScopeWord = Literal["inference", "fine-tune", "admin"]


class WindowBody(WireModel):
    name: str = Field(description="Clients see it in headers.")
    quota: int = Field(ge=0, le=2**53, description="The largest number of requests or tokens in a period.")
    period_s: float = Field(description="Seconds from the first use on.")
    counts: Literal["requests", "tokens"] = "requests"


class LimitsBody(WireModel):
    """What replaces the configured limits of one API."""

    windows: list[WindowBody] = Field(default=[], max_length=8)
    max_concurrent: int | None = Field(None, description="Answers that may be made at the same time; null: no bound.")


class LimitsByDialect(WireModel):
    """An API that is left out has the configured limits."""

    aitextgen: LimitsBody | None = None
    inferkit: LimitsBody | None = None
    totalgpt: LimitsBody | None = None


class KeyChange(WireModel):
    """A field that is left out stays as it is."""

    scopes: list[ScopeWord] = Field(default=["inference"], description="What the key may be used for.")
    models: list[str] | None = Field(None, description="Ids or aliases of the models that it may use; null: all.")
    limits: LimitsByDialect = Field(LimitsByDialect(), description="Limits of its own, by API.")
    budget: Credits | None = Field(None, description="What it may spend in all; null: no bound of its own.")


class NewKey(KeyChange):
    """A new key of an account."""

    name: str = Field(description="A word to know the key by.")
    expires_at: str | None = Field(None, description="A time such as 2026-12-31T00:00:00Z; null: never.")


class Rotation(WireModel):
    overlap_s: float = Field(
        0, ge=0, le=366 * 86400, description="For so many seconds the old secret is accepted beside the new one."
    )


def to_grant(body: KeyChange, catalog: ModelCatalog, *, present: KeyGrant | None = None) -> KeyGrant:
    """What the key may do: what the body says, and for what it leaves out the present grant or the defaults.

    Raises InvalidParameter.
    """
    present = present or KeyGrant()
    given = body.model_fields_set
    models = None if body.models is None else frozenset(_model_id(name, catalog) for name in body.models)
    return KeyGrant(
        scopes=frozenset(map(Scope, body.scopes)) if "scopes" in given else present.scopes,
        models=models if "models" in given else present.models,
        limits=_to_limits(body.limits) if "limits" in given else present.limits,
        budget=to_microcredits(body.budget, "budget") if "budget" in given else present.budget,
    )


def _model_id(name: str, catalog: ModelCatalog) -> str:
    try:
        return catalog.grantable_id(name)
    except ModelNotFound as error:
        raise InvalidParameter(error.message, "models") from None


def _to_limits(body: LimitsByDialect) -> tuple[tuple[Dialect, KeyLimits], ...]:
    by_dialect = {
        Dialect.AITEXTGEN: body.aitextgen,
        Dialect.INFERKIT: body.inferkit,
        Dialect.TOTALGPT: body.totalgpt,
    }
    return tuple(
        (dialect, KeyLimits(tuple(map(_to_window, limits.windows)), limits.max_concurrent))
        for dialect, limits in by_dialect.items()
        if limits is not None
    )


def _to_window(body: WindowBody) -> Window:
    return Window(body.name, body.quota, body.period_s, body.counts)


def key_object(record: KeyRecord) -> dict[str, Any]:
    """The key without its secret, which nobody has."""
    return {
        "object": "key",
        "id": record.id,
        "account": record.account,
        "name": record.name,
        "scopes": sorted(record.grant.scopes),
        "models": None if record.grant.models is None else sorted(record.grant.models),
        "limits": {dialect.value: describe_limits(limits) for dialect, limits in record.grant.limits},
        "budget": to_credits(record.grant.budget),
        "spent": to_credits(record.spent),
        "reserved": to_credits(record.reserved),
        "created_at": to_iso(record.created_at),
        "expires_at": to_iso(record.expires_at),
        "revoked_at": to_iso(record.revoked_at),
        "last_used_at": to_iso(record.last_used_at),
        "old_secret_valid_until": to_iso(record.old_valid_until),
    }
