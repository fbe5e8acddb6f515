"""The views of our schema, as the database knows them."""

from __future__ import annotations

from tests.support.database.databases import Database
from tests.support.database.runs import everything

_VIEWS = """
SELECT c.oid::regclass::text AS name FROM pg_class AS c
 WHERE c.relkind = 'v' AND c.relnamespace = 'orcheo_dispatch'::regnamespace
"""


def views_of(database: Database) -> set[str]:
    """Return the names of the views, with the schema."""
    return {row["name"] for row in everything(database, _VIEWS)}
