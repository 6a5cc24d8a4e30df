"""The tables: the one place that says what is stored. Times are seconds since 1970, UTC."""

from sqlalchemy import Column, Float, Index, LargeBinary, MetaData, String, Table

metadata = MetaData()

keys = Table(
    "keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("account", String(200), nullable=False),
    Column("name", String(200), nullable=False),
    Column("digest", LargeBinary(32), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("revoked_at", Float),
    Index("keys_by_account", "account", "created_at"),
)
