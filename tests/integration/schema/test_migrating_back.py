"""`migrate --to`: the schema goes back to what an older release needs, and forward again to the same."""

from __future__ import annotations

import pytest
from alembic.script import ScriptDirectory

from orcheo_dispatch.shared.database.connections import make_engine
from orcheo_dispatch.shared.errors import SchemaError, SettingsError
from orcheo_dispatch.shared.schema.migrate import _config, migrate, migrate_back
from orcheo_dispatch.shared.schema.revision import current_revision, newest_revision
from tests.support.database.databases import Database
from tests.support.database.runs import everything, settings_for

_OURS = """
SELECT c.relname, c.relkind, a.attname, format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull
  FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE c.relnamespace = 'orcheo_dispatch'::regnamespace ORDER BY c.relname, a.attname
"""
REVISIONS = sorted(script.revision for script in ScriptDirectory.from_config(_config(None)).walk_revisions())


@pytest.mark.parametrize("revision", REVISIONS)
def test_schema_goes_back_and_comes_again(orcheo_database: Database, revision: str) -> None:
    settings = settings_for(orcheo_database)
    migrate(settings)
    newest = everything(orcheo_database, _OURS)
    done = migrate_back(settings, revision)
    assert (done.revision_before, done.revision, done.index_present) == (newest_revision(), revision, True)
    assert _revision(orcheo_database) == revision
    assert (everything(orcheo_database, _OURS) == newest) is (revision == newest_revision())
    migrate(settings)
    assert everything(orcheo_database, _OURS) == newest


def test_revision_of_nobody_is_refused(orcheo_database: Database) -> None:
    with pytest.raises(SettingsError, match="--to='base' is invalid: expected one of 0001"):
        migrate_back(settings_for(orcheo_database), "base")


def test_database_without_our_schema_is_refused(orcheo_database: Database) -> None:
    with pytest.raises(SchemaError, match="is at revision none, which is not after 0001"):
        migrate_back(settings_for(orcheo_database), "0001")
    assert _revision(orcheo_database) is None


def _revision(database: Database) -> str | None:
    engine = make_engine(settings_for(database), role="test", connections=1)
    try:
        with engine.connect() as connection:
            return current_revision(connection)
    finally:
        engine.dispose()
