"""Check once, before the first run, whether the tables of this database fit our statements."""

from __future__ import annotations

import psycopg

from orcheo_dispatch.shared.errors import DatabaseError, SchemaError
from orcheo_dispatch.worker.books.postgres import Pool, fetch_all
from orcheo_dispatch.worker.orcheo.opening.columns import (
    SELECT_COLUMNS,
    SELECT_MIGRATION,
    Mismatch,
    compare,
    has_migrations,
    unknown_migration,
)
from orcheo_dispatch.worker.orcheo.releases import installed


async def look_at_tables(pool: Pool) -> Mismatch:
    """Return the differences in the tables that we write. Raises `SchemaError` if no run could be executed."""
    rows = await fetch_all(pool, SELECT_COLUMNS, {})
    mismatch = compare(rows)
    if mismatch.read:
        releases = ", ".join(str(release) for release in installed())
        raise SchemaError(
            f"{'; '.join(mismatch.read)} ({releases}): "
            "use a release of orcheo-dispatch that was tested with this release of Orcheo"
        )
    newest = (await fetch_all(pool, SELECT_MIGRATION, {}))[0]["v"] if has_migrations(rows) else None
    unknown = unknown_migration(newest)
    if unknown is None:
        return mismatch
    return Mismatch(checkpoints=(*mismatch.checkpoints, unknown), traces=mismatch.traces)


def explain(error: psycopg.Error) -> DatabaseError:
    """Return what to report for an error of Postgres: its class and its first line, which contains no row."""
    return DatabaseError(f"{type(error).__name__}: {said(error)}")


def said(error: psycopg.Error) -> str:
    """Return the first line of Postgres' message, without the details, which may quote a row."""
    return error.diag.message_primary or "the connection failed"
