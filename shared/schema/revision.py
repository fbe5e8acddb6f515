"""The schema's revision, and the one that this release needs. Does not import Alembic; only `migrate` does."""

from __future__ import annotations

import re
from importlib.resources import files

from sqlalchemy import Connection, text

from orcheo_dispatch.shared.ledger.model import SCHEMA

_REVISION = f"SELECT version_num FROM {SCHEMA}.alembic_version"
_FILE = re.compile(r"(\d{4})_\w+\.py")


def newest_revision() -> str:
    """Return the revision that this release needs: the highest number in the names of the migration files."""
    names = (
        _FILE.fullmatch(each.name) for each in files("orcheo_dispatch.shared.schema.migrations.versions").iterdir()
    )
    return max(name[1] for name in names if name)


def current_revision(connection: Connection) -> str | None:
    """Return the revision of the database, or None if our schema does not exist."""
    if connection.scalar(text("SELECT to_regclass(:table) IS NULL"), {"table": f"{SCHEMA}.alembic_version"}):
        return None
    revision: str | None = connection.scalar(text(_REVISION))
    return revision
