"""Alembic migrations of schema `orcheo_dispatch`; run by `shared/schema/migrate.py`."""
