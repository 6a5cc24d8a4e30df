"""How Alembic runs the migrations: in the transaction of the connection that `serve_app.stores.schema` gives it."""

from alembic import context

from serve_app.stores.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
