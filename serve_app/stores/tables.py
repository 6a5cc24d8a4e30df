"""The tables: the one place that says what is stored.

Times are seconds since 1970, UTC. Amounts are whole microcredits, millionths of a credit, so that sums are exact.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pk",
        "fk": "%(table_name)s_%(column_0_name)s_fk",
        "uq": "%(table_name)s_%(column_0_name)s_unique",
    }
)


def _partial_index(name: str, column: str, condition: str) -> Index:
    """An index that holds only the rows of this condition: few of many."""
    return Index(name, column, sqlite_where=text(condition), postgresql_where=text(condition))


accounts = Table(
    "accounts",
    metadata,
    Column("id", String(200), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("closed_at", Float),  # a closed account's keys are refused
    Column("credit", BigInteger),  # what is left to spend; null: no bound
    Column("reserved", BigInteger, nullable=False, server_default="0"),  # of it, held for requests that are running
)

keys = Table(
    "keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("account", String(200), ForeignKey("accounts.id"), nullable=False),
    Column("name", String(200), nullable=False),
    Column("digest", LargeBinary(32), nullable=False),
    Column("scopes", JSON, nullable=False),  # a list of words
    Column("models", JSON(none_as_null=True)),  # a list of ids; null: all
    Column("limits", JSON, nullable=False),  # by dialect, where they differ from the configured ones
    Column("budget", BigInteger),  # what the key may spend in all; null: no bound of its own
    Column("spent", BigInteger, nullable=False, server_default="0"),
    Column("reserved", BigInteger, nullable=False, server_default="0"),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("revoked_at", Float),
    Column("last_used_at", Float),  # to the minute
    Column("old_digest", LargeBinary(32)),  # of the secret before the last rotation
    Column("old_valid_until", Float),  # until when that secret is accepted, too
    Index("keys_by_account", "account", "created_at"),
)

rate_windows = Table(
    "rate_windows",
    metadata,
    Column("key_id", String(32), primary_key=True),
    Column("dialect", String(20), primary_key=True),
    Column("name", String(50), primary_key=True),
    Column("started_at", Float, nullable=False),
    Column("used", BigInteger, nullable=False),
)

owners = Table(  # processes that hold reservations or run idempotent requests
    "owners",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("alive_until", Float, nullable=False),
)

ledger = Table(  # one line for each request that may cost something
    "ledger",
    metadata,
    Column("id", String(150), primary_key=True),  # the request's id: at most 100 characters, a dot and 32
    Column("account", String(200), nullable=False),
    Column("key_id", String(32), nullable=False),
    Column("dialect", String(20), nullable=False),
    Column("model", String(200), nullable=False),
    Column("owner", String(32)),  # who will settle it; null once it is settled
    Column("created_at", Float, nullable=False),
    Column("settled_at", Float),  # null: open
    Column("held", BigInteger, nullable=False),  # the most that it can cost
    Column("held_tokens", BigInteger, nullable=False),  # counted in token windows until it is settled
    Column("prompt_tokens", BigInteger, nullable=False, server_default="0"),  # what was delivered so far, or in all
    Column("completion_tokens", BigInteger, nullable=False, server_default="0"),
    Column("characters", BigInteger, nullable=False, server_default="0"),
    Column("cost", BigInteger, nullable=False, server_default="0"),
    Column("outcome", String(20)),  # completed, cancelled, failed, lost
    _partial_index("ledger_by_owner", "owner", "owner IS NOT NULL"),
    _partial_index("ledger_open", "key_id", "settled_at IS NULL"),
    Index("ledger_by_key", "key_id", "created_at", "id"),
    Index("ledger_by_account", "account", "created_at", "id"),
    Index("ledger_by_time", "created_at", "id"),
)

usage_by_day = Table(  # the sums of settled lines, kept as they are settled
    "usage_by_day",
    metadata,
    Column("account", String(200), primary_key=True),
    Column("day", String(10), primary_key=True),  # 2026-01-31, UTC
    Column("key_id", String(32), primary_key=True),
    Column("dialect", String(20), primary_key=True),
    Column("model", String(200), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("characters", BigInteger, nullable=False),
    Column("cost", BigInteger, nullable=False),
    Index("usage_by_day_by_day", "day", "account"),
)

credit_grants = Table(  # granted minus the ledger's costs is an account's credit
    "credit_grants",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("account", String(200), ForeignKey("accounts.id"), nullable=False),
    Column("amount", BigInteger, nullable=False),  # below zero: taken back
    Column("note", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Index("credit_grants_by_account", "account", "created_at"),
)

idempotent_requests = Table(
    "idempotent_requests",
    metadata,
    Column("account", String(200), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("fingerprint", LargeBinary(32), nullable=False),  # of method, path and body
    Column("owner", String(32)),  # who runs it; null once the answer is kept
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("status", Integer),
    Column("headers", JSON(none_as_null=True)),
    Column("body", LargeBinary),
    Index("idempotent_requests_by_expiry", "expires_at"),
    _partial_index("idempotent_requests_by_owner", "owner", "owner IS NOT NULL"),
)

audit_log = Table(  # rows are only ever added
    "audit_log",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("actor", String(200), nullable=False),  # a key's id, or `command line`
    Column("action", String(50), nullable=False),  # such as key.create
    Column("target", String(200), nullable=False),
    Column("details", JSON, nullable=False),
    Index("audit_log_by_time", "at"),
)

files = Table(  # what clients upload to train on; the documents lie in the object store
    "files",
    metadata,
    Column("id", String(50), primary_key=True),
    Column("account", String(200), nullable=False),
    Column("filename", String(200), nullable=False),
    Column("purpose", String(50), nullable=False),
    Column("bytes", BigInteger, nullable=False),  # as it was uploaded
    Column("digest", String(64), nullable=False),  # SHA-256 of the blob with the documents
    Column("original", String(64), nullable=False),  # SHA-256 of the blob with the file as it was uploaded
    Column("num_documents", BigInteger, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("deleted_at", Float),
    Index("files_by_account", "account", "created_at", "id"),
)

jobs = Table(  # fine-tuning jobs
    "jobs",
    metadata,
    Column("id", String(50), primary_key=True),
    Column("account", String(200), nullable=False),
    Column("key_id", String(32), nullable=False),
    Column("dialect", String(20), nullable=False),
    Column("base_model", String(200), nullable=False),
    Column("model_id", String(50), nullable=False),  # what the adapter is called, if it ever is
    Column("name", String(200), nullable=False),
    Column("training_file", String(50), nullable=False),
    Column("validation_file", String(50)),
    Column("params", JSON, nullable=False),
    Column("metadata", JSON, nullable=False),  # the client's own words
    Column("status", String(20), nullable=False),
    Column("error", JSON(none_as_null=True)),  # code, message, param
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("not_before", Float, nullable=False, server_default="0"),  # when it may be claimed
    Column("worker", String(32)),  # the dispatcher that runs it
    Column("lease_until", Float),
    Column("fence", BigInteger, nullable=False, server_default="0"),  # grows with each claim
    Column("claimed_at", Float),  # the last time
    Column("attempts", BigInteger, nullable=False, server_default="0"),  # in a row that brought no checkpoint
    Column("postponed", BigInteger, nullable=False, server_default="0"),  # times in a row that brought no checkpoint
    Column("postponed_because", Text),  # the last time
    Column("step", BigInteger, nullable=False, server_default="0"),
    Column("total_steps", BigInteger),
    Column("progress", JSON(none_as_null=True)),  # the last: loss, tokens_per_s, seconds_left, ...
    Column("trained_tokens", BigInteger, nullable=False, server_default="0"),
    Column("training_time_s", Float, nullable=False, server_default="0"),  # of all attempts
    Column("manifest", String(64)),  # of the published adapter
    Index("jobs_by_account", "account", "created_at", "id"),
    Index("jobs_by_turn", "account", "claimed_at"),
    _partial_index("jobs_open", "created_at", "finished_at IS NULL"),
)

job_events = Table(
    "job_events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("job", String(50), ForeignKey("jobs.id"), nullable=False),
    Column("account", String(200), nullable=False),
    Column("at", Float, nullable=False),
    Column("level", String(10), nullable=False),  # info, warn, error
    Column("type", String(10), nullable=False),  # message, metrics
    Column("message", Text, nullable=False),
    Column("data", JSON, nullable=False),
    Index("job_events_by_job", "job", "id"),
)

job_checkpoints = Table(
    "job_checkpoints",
    metadata,
    Column("job", String(50), ForeignKey("jobs.id"), primary_key=True),
    Column("step", BigInteger, primary_key=True),
    Column("account", String(200), nullable=False),
    Column("manifest", String(64), nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
)

chores = Table(  # what one process of all does now and then
    "chores",
    metadata,
    Column("name", String(50), primary_key=True),
    Column("due_at", Float, nullable=False),
)

tuned_models = Table(  # published adapters
    "tuned_models",
    metadata,
    Column("id", String(50), primary_key=True),
    Column("account", String(200), nullable=False),
    Column("key_id", String(32), nullable=False),
    Column("base_model", String(200), nullable=False),
    Column("job", String(50), ForeignKey("jobs.id"), nullable=False, unique=True),
    Column("name", String(200), nullable=False),
    Column("manifest", String(64), nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("deployed", Boolean, nullable=False),
    Column("undeploy_at", Float),  # when it is taken out of service by itself
    Column("deleted_at", Float),
    Index("tuned_models_by_account", "account", "created_at", "id"),
)

webhook_endpoints = Table(
    "webhook_endpoints",
    metadata,
    Column("id", String(50), primary_key=True),
    Column("account", String(200), nullable=False),
    Column("url", Text, nullable=False),
    Column("events", JSON, nullable=False),  # a list of names
    Column("secret", LargeBinary, nullable=False),  # sealed
    Column("old_secret", LargeBinary),  # sealed; signs too, until
    Column("old_secret_until", Float),
    Column("created_at", Float, nullable=False),
    Column("failing_since", Float),  # tests not counted; null: the last attempt succeeded
    Column("disabled_at", Float),
    Column("disabled_reason", Text),
    Column("deleted_at", Float),
    Index("webhook_endpoints_by_account", "account", "created_at", "id"),
)

webhook_events = Table(
    "webhook_events",
    metadata,
    Column("id", String(50), primary_key=True),
    Column("account", String(200), nullable=False),
    Column("type", String(50), nullable=False),
    Column("at", Float, nullable=False),
    Column("payload", LargeBinary, nullable=False),  # the bytes that are signed and sent
    Index("webhook_events_by_time", "at"),
)

webhook_deliveries = Table(  # the outbox: an event to an endpoint
    "webhook_deliveries",
    metadata,
    Column("id", String(50), primary_key=True),
    Column("account", String(200), nullable=False),
    Column("endpoint", String(50), ForeignKey("webhook_endpoints.id"), nullable=False),
    Column("event", String(50), ForeignKey("webhook_events.id"), nullable=False),
    Column("status", String(20), nullable=False),  # pending, succeeded, failed
    Column("attempts", BigInteger, nullable=False, server_default="0"),
    Column("created_at", Float, nullable=False),
    Column("next_at", Float),  # of a pending one: when it is due, or its lease ends; null: it has ended
    Column("leased", Boolean, nullable=False),  # somebody is sending it
    Column("fence", BigInteger, nullable=False, server_default="0"),  # grows with each claim
    Column("attempted_at", Float),  # the last attempt
    Column("finished_at", Float),
    Column("response_status", Integer),  # of the last attempt
    Column("response_body", Text),  # its beginning
    Column("error", Text),  # why there was no response
    UniqueConstraint("event", "endpoint", name="webhook_deliveries_once"),
    Index("webhook_deliveries_by_endpoint", "endpoint", "created_at", "id"),
    Index("webhook_deliveries_by_end", "finished_at"),
    _partial_index("webhook_deliveries_due", "next_at", "next_at IS NOT NULL"),
)
