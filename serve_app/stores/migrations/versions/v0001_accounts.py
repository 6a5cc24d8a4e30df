"""Accounts, keys with scopes and budgets, rate limits, the ledger, usage, idempotent requests and the audit log.

A database that was made before there were migrations holds one table, `keys`; its keys and accounts are brought over.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_old_keys = sa.table(
    "keys_before",
    *map(sa.column, ("id", "account", "name", "digest", "created_at", "expires_at", "revoked_at")),
)


def upgrade() -> None:
    has_old_keys = sa.inspect(op.get_bind()).has_table("keys")
    if has_old_keys:
        op.drop_index("keys_by_account", "keys")
        op.rename_table("keys", "keys_before")
    _create_tables()
    if has_old_keys:
        _bring_keys_over()
        op.drop_table("keys_before")


def _bring_keys_over() -> None:
    old = _old_keys.c
    accounts = sa.table("accounts", *map(sa.column, ("id", "name", "created_at")))
    keys = sa.table("keys", *map(sa.column, [*old.keys(), "scopes", "limits"]))
    made = sa.select(old.account, old.account, sa.func.min(old.created_at)).group_by(old.account)
    op.execute(accounts.insert().from_select(["id", "name", "created_at"], made))
    columns = sa.select(*old, sa.literal_column("'[\"inference\"]'"), sa.literal_column("'{}'"))
    op.execute(keys.insert().from_select([*old.keys(), "scopes", "limits"], columns))


def _create_partial_index(name: str, table: str, column: str, condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, table, [column], unique=False, sqlite_where=where, postgresql_where=where)


def _create_tables() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", sa.String(length=200), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("closed_at", sa.Float(), nullable=True),
        sa.Column("credit", sa.BigInteger(), nullable=True),
        sa.Column("reserved", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("accounts_pk")),
    )
    op.create_table(
        "audit_log",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("action", sa.String(length=50), nullable=False),
        sa.Column("target", sa.String(length=200), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("audit_log_pk")),
    )
    op.create_index("audit_log_by_time", "audit_log", ["at"], unique=False)
    op.create_table(
        "idempotent_requests",
        sa.Column("account", sa.String(length=200), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(length=32), nullable=False),
        sa.Column("owner", sa.String(length=32), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("headers", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("account", "key", name=op.f("idempotent_requests_pk")),
    )
    op.create_index("idempotent_requests_by_expiry", "idempotent_requests", ["expires_at"], unique=False)
    _create_partial_index("idempotent_requests_by_owner", "idempotent_requests", "owner", "owner IS NOT NULL")
    op.create_table(
        "ledger",
        sa.Column("id", sa.String(length=150), nullable=False),
        sa.Column("account", sa.String(length=200), nullable=False),
        sa.Column("key_id", sa.String(length=32), nullable=False),
        sa.Column("dialect", sa.String(length=20), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("owner", sa.String(length=32), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("settled_at", sa.Float(), nullable=True),
        sa.Column("held", sa.BigInteger(), nullable=False),
        sa.Column("held_tokens", sa.BigInteger(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("characters", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cost", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("outcome", sa.String(length=20), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("ledger_pk")),
    )
    op.create_index("ledger_by_account", "ledger", ["account", "created_at", "id"], unique=False)
    op.create_index("ledger_by_key", "ledger", ["key_id", "created_at", "id"], unique=False)
    _create_partial_index("ledger_by_owner", "ledger", "owner", "owner IS NOT NULL")
    _create_partial_index("ledger_open", "ledger", "key_id", "settled_at IS NULL")
    op.create_index("ledger_by_time", "ledger", ["created_at", "id"], unique=False)
    op.create_table(
        "owners",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("alive_until", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("owners_pk")),
    )
    op.create_table(
        "rate_windows",
        sa.Column("key_id", sa.String(length=32), nullable=False),
        sa.Column("dialect", sa.String(length=20), nullable=False),
        sa.Column("name", sa.String(length=50), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key_id", "dialect", "name", name=op.f("rate_windows_pk")),
    )
    op.create_table(
        "usage_by_day",
        sa.Column("account", sa.String(length=200), nullable=False),
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("key_id", sa.String(length=32), nullable=False),
        sa.Column("dialect", sa.String(length=20), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("characters", sa.BigInteger(), nullable=False),
        sa.Column("cost", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account", "day", "key_id", "dialect", "model", name=op.f("usage_by_day_pk")),
    )
    op.create_index("usage_by_day_by_day", "usage_by_day", ["day", "account"], unique=False)
    op.create_table(
        "credit_grants",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("account", sa.String(length=200), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["account"], ["accounts.id"], name=op.f("credit_grants_account_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("credit_grants_pk")),
    )
    op.create_index("credit_grants_by_account", "credit_grants", ["account", "created_at"], unique=False)
    op.create_table(
        "keys",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("account", sa.String(length=200), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("models", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("limits", sa.JSON(), nullable=False),
        sa.Column("budget", sa.BigInteger(), nullable=True),
        sa.Column("spent", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("reserved", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=True),
        sa.Column("revoked_at", sa.Float(), nullable=True),
        sa.Column("last_used_at", sa.Float(), nullable=True),
        sa.Column("old_digest", sa.LargeBinary(length=32), nullable=True),
        sa.Column("old_valid_until", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["account"], ["accounts.id"], name=op.f("keys_account_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("keys_pk")),
    )
    op.create_index("keys_by_account", "keys", ["account", "created_at"], unique=False)
