"""Alembic's entry point: runs the migrations on the connection that `shared/schema/migrate.py` passes."""

from alembic import context

from orcheo_dispatch.shared.ledger.model import SCHEMA

context.configure(
    connection=context.config.attributes["connection"],
    version_table="alembic_version",
    version_table_schema=SCHEMA,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
