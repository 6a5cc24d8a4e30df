"""Fine-tuning: files, jobs with their events and checkpoints, published adapters; webhooks with their deliveries."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def _create_partial_index(name: str, table: str, column: str, condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, table, [column], unique=False, sqlite_where=where, postgresql_where=where)


def upgrade() -> None:
    op.create_table(
        "chores",
        sa.Column("name", sa.String(length=50), nullable=False),
        sa.Column("due_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("chores_pk")),
    )
    op.create_table(
        "files",
        sa.Column("id", sa.String(length=50), nullable=False),
        sa.Column("account", sa.String(length=200), nullable=False),
        sa.Column("filename", sa.String(length=200), nullable=False),
        sa.Column("purpose", sa.String(length=50), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("original", sa.String(length=64), nullable=False),
        sa.Column("num_documents", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("deleted_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("files_pk")),
    )
    op.create_index("files_by_account", "files", ["account", "created_at", "id"], unique=False)
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(length=50), nullable=False),
        sa.Column("account", sa.String(length=200), nullable=False),
        sa.Column("key_id", sa.String(length=32), nullable=False),
        sa.Column("dialect", sa.String(length=20), nullable=False),
        sa.Column("base_model", sa.String(length=200), nullable=False),
        sa.Column("model_id", sa.String(length=50), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("training_file", sa.String(length=50), nullable=False),
        sa.Column("validation_file", sa.String(length=50), nullable=True),
        sa.Column("params", sa.JSON(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("error", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=True),
        sa.Column("finished_at", sa.Float(), nullable=True),
        sa.Column("not_before", sa.Float(), server_default="0", nullable=False),
        sa.Column("worker", sa.String(length=32), nullable=True),
        sa.Column("lease_until", sa.Float(), nullable=True),
        sa.Column("fence", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("claimed_at", sa.Float(), nullable=True),
        sa.Column("attempts", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("postponed", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("postponed_because", sa.Text(), nullable=True),
        sa.Column("step", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("total_steps", sa.BigInteger(), nullable=True),
        sa.Column("progress", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("trained_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("training_time_s", sa.Float(), server_default="0", nullable=False),
        sa.Column("manifest", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("jobs_pk")),
    )
    op.create_index("jobs_by_account", "jobs", ["account", "created_at", "id"], unique=False)
    op.create_index("jobs_by_turn", "jobs", ["account", "claimed_at"], unique=False)
    _create_partial_index("jobs_open", "jobs", "created_at", "finished_at IS NULL")
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.String(length=50), nullable=False),
        sa.Column("account", sa.String(length=200), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("events", sa.JSON(), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("old_secret", sa.LargeBinary(), nullable=True),
        sa.Column("old_secret_until", sa.Float(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("failing_since", sa.Float(), nullable=True),
        sa.Column("disabled_at", sa.Float(), nullable=True),
        sa.Column("disabled_reason", sa.Text(), nullable=True),
        sa.Column("deleted_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("webhook_endpoints_pk")),
    )
    op.create_index("webhook_endpoints_by_account", "webhook_endpoints", ["account", "created_at", "id"], unique=False)
    op.create_table(
        "webhook_events",
        sa.Column("id", sa.String(length=50), nullable=False),
        sa.Column("account", sa.String(length=200), nullable=False),
        sa.Column("type", sa.String(length=50), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("webhook_events_pk")),
    )
    op.create_index("webhook_events_by_time", "webhook_events", ["at"], unique=False)
    op.create_table(
        "job_checkpoints",
        sa.Column("job", sa.String(length=50), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("account", sa.String(length=200), nullable=False),
        sa.Column("manifest", sa.String(length=64), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name=op.f("job_checkpoints_job_fk")),
        sa.PrimaryKeyConstraint("job", "step", name=op.f("job_checkpoints_pk")),
    )
    op.create_table(
        "job_events",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("job", sa.String(length=50), nullable=False),
        sa.Column("account", sa.String(length=200), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("level", sa.String(length=10), nullable=False),
        sa.Column("type", sa.String(length=10), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name=op.f("job_events_job_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("job_events_pk")),
    )
    op.create_index("job_events_by_job", "job_events", ["job", "id"], unique=False)
    op.create_table(
        "tuned_models",
        sa.Column("id", sa.String(length=50), nullable=False),
        sa.Column("account", sa.String(length=200), nullable=False),
        sa.Column("key_id", sa.String(length=32), nullable=False),
        sa.Column("base_model", sa.String(length=200), nullable=False),
        sa.Column("job", sa.String(length=50), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("manifest", sa.String(length=64), nullable=False),
        sa.Column("num_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("deployed", sa.Boolean(), nullable=False),
        sa.Column("undeploy_at", sa.Float(), nullable=True),
        sa.Column("deleted_at", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name=op.f("tuned_models_job_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("tuned_models_pk")),
        sa.UniqueConstraint("job", name=op.f("tuned_models_job_unique")),
    )
    op.create_index("tuned_models_by_account", "tuned_models", ["account", "created_at", "id"], unique=False)
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.String(length=50), nullable=False),
        sa.Column("account", sa.String(length=200), nullable=False),
        sa.Column("endpoint", sa.String(length=50), nullable=False),
        sa.Column("event", sa.String(length=50), nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("attempts", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("next_at", sa.Float(), nullable=True),
        sa.Column("leased", sa.Boolean(), nullable=False),
        sa.Column("fence", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("attempted_at", sa.Float(), nullable=True),
        sa.Column("finished_at", sa.Float(), nullable=True),
        sa.Column("response_status", sa.Integer(), nullable=True),
        sa.Column("response_body", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["endpoint"], ["webhook_endpoints.id"], name=op.f("webhook_deliveries_endpoint_fk")),
        sa.ForeignKeyConstraint(["event"], ["webhook_events.id"], name=op.f("webhook_deliveries_event_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("webhook_deliveries_pk")),
        sa.UniqueConstraint("event", "endpoint", name="webhook_deliveries_once"),
    )
    op.create_index("webhook_deliveries_by_end", "webhook_deliveries", ["finished_at"], unique=False)
    op.create_index(
        "webhook_deliveries_by_endpoint", "webhook_deliveries", ["endpoint", "created_at", "id"], unique=False
    )
    _create_partial_index("webhook_deliveries_due", "webhook_deliveries", "next_at", "next_at IS NOT NULL")
