"""`migrate`: idempotent, safe on two hosts at once, touches nothing of the API's but one index."""

from __future__ import annotations

import threading
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from orcheo_dispatch.shared.database.connections import make_engine
from orcheo_dispatch.shared.errors import SchemaError
from orcheo_dispatch.shared.schema.api_table import INDEXES
from orcheo_dispatch.shared.schema.begin_guard import TRIGGER as GUARD
from orcheo_dispatch.shared.schema.migrate import Migration, migrate
from orcheo_dispatch.shared.schema.revision import newest_revision
from tests.support.database.databases import Database
from tests.support.database.runs import everything, execute, insert_runs, one, settings_for
from tests.support.processes.processes import Stack

_PUBLIC = """
SELECT c.relname, pg_get_indexdef(c.oid) AS definition FROM pg_class AS c
 WHERE c.relnamespace = 'public'::regnamespace ORDER BY c.relname
"""
_COLUMNS = """
SELECT table_name, column_name, data_type, column_default, is_nullable FROM information_schema.columns
 WHERE table_schema = 'public' ORDER BY table_name, column_name
"""
_TRIGGERS = """
SELECT tgname FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
 WHERE NOT tgisinternal AND c.relnamespace = 'public'::regnamespace
"""


def test_migrate_is_idempotent(orcheo_database: Database) -> None:
    settings = settings_for(orcheo_database)
    first, second = migrate(settings), migrate(settings)
    assert first == Migration(None, newest_revision(), index_created=True, index_present=True, notify=False)
    assert second == Migration(
        newest_revision(), newest_revision(), index_created=False, index_present=True, notify=False
    )


def test_migrate_adds_two_indexes_and_one_trigger_to_the_api_and_nothing_else(orcheo_database: Database) -> None:
    tables, columns = everything(orcheo_database, _PUBLIC), everything(orcheo_database, _COLUMNS)
    triggers = everything(orcheo_database, _TRIGGERS)
    migrate(settings_for(orcheo_database))
    after = [row for row in everything(orcheo_database, _PUBLIC) if row["relname"] not in INDEXES]
    assert after == tables
    assert everything(orcheo_database, _COLUMNS) == columns
    assert [row for row in everything(orcheo_database, _TRIGGERS) if row["tgname"] != GUARD] == triggers


def test_index_can_be_left_out_and_dispatch_works_without_it(
    orcheo_database: Database, redis_url: str, tmp_path: Path
) -> None:
    done = migrate(settings_for(orcheo_database), index=False)
    assert (done.index_created, done.index_present) == (False, False)
    insert_runs(orcheo_database)
    with Stack(orcheo_database, redis_url, tmp_path / "effects").running("dispatcher") as dispatcher:
        dispatcher.saw("index_missing")
        dispatcher.saw("published=1")


def test_two_hosts_migrate_at_once(orcheo_database: Database) -> None:
    settings = settings_for(orcheo_database)
    start = threading.Barrier(3)
    done: list[Migration] = []
    failures: list[BaseException] = []

    def host() -> None:
        start.wait()
        try:
            done.append(migrate(settings))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=host) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sorted(each.index_created for each in done) == [False, False, True]
    assert sum(each.revision_before is None for each in done) == 1


@pytest.mark.parametrize("index", INDEXES)
def test_invalid_index_of_an_interrupted_migration_is_made_anew(orcheo_database: Database, index: str) -> None:
    settings = settings_for(orcheo_database)
    migrate(settings)
    execute(orcheo_database, "UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass(%s)", index)
    assert migrate(settings).index_created
    valid = one(orcheo_database, "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)", index)
    assert valid["indisvalid"]


def test_index_is_made_while_a_run_is_being_inserted(orcheo_database: Database) -> None:
    """CONCURRENTLY waits for transactions under way, but keeps nobody from inserting."""
    settings = settings_for(orcheo_database)
    migrate(settings, index=False)
    with psycopg.connect(orcheo_database.dsn) as api:
        api.execute("SELECT count(*) FROM workflow_runs")
        migrating = threading.Thread(target=lambda: migrate(settings))
        migrating.start()
        insert_runs(orcheo_database)
        api.rollback()
        migrating.join(60)
    assert not migrating.is_alive()


def test_migrate_says_in_one_line_that_tables_of_orcheo_are_missing(empty_database: Database) -> None:
    with pytest.raises(SchemaError, match="workflow_runs is missing") as raised:
        migrate(settings_for(empty_database))
    assert "\n" not in str(raised.value)


def test_downgrade_leaves_nothing(orcheo_database: Database) -> None:
    from alembic import command

    from orcheo_dispatch.shared.schema import migrate as module
    from orcheo_dispatch.shared.schema.views import remove_views

    settings = settings_for(orcheo_database)
    migrate(settings, index=False)
    engine = make_engine(settings, role="test", connections=1)
    with engine.connect() as connection:
        remove_views(connection)
        command.downgrade(module._config(connection), "base")
        connection.commit()
        left = connection.execute(
            text("SELECT relname FROM pg_class WHERE relnamespace = 'orcheo_dispatch'::regnamespace ORDER BY 1")
        )
        assert {row[0] for row in left} <= {"alembic_version", "alembic_version_pkc"}
    engine.dispose()
