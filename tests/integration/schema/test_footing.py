"""What a database may be like instead: each is refused by `check` and at the start, in one line, or works."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest

from orcheo_dispatch.dispatcher.app import Dispatcher, make_dispatcher_app
from orcheo_dispatch.ops.host.check import check, exit_code
from orcheo_dispatch.shared.broker.installation import find_installation
from orcheo_dispatch.shared.ledger.model import ProcessKind
from orcheo_dispatch.shared.schema import parts
from orcheo_dispatch.shared.schema.migrate import migrate
from tests.support.database.databases import Database, grant
from tests.support.database.roles import Kind, Roles
from tests.support.database.runs import (
    all_are,
    everything,
    execute,
    insert_runs,
    ledger,
    read_run,
    settings_for,
    store_of,
)
from tests.support.database.session_settings import give
from tests.support.database.views import views_of
from tests.support.processes.processes import Stack, until

_WRITERS = (["dispatcher"], ["worker"], ["poll"], ["cancel", "no-such-run"])
_TABLE_OF_RUNS = "CREATE TABLE {schema}.workflow_runs (LIKE public.workflow_runs INCLUDING ALL)"


def _is_refused(database: Database, redis_url: str, what: str, found: str, *commands: list[str]) -> None:
    """Make sure that `check` and each command say this, in one line, and exit with 3."""
    pattern = f"^orcheo-dispatch: {re.escape(what)}: {found}: .+$"
    stack = Stack(database, redis_url, Path("/dev/null"))
    for command in commands or _WRITERS:
        with stack.command(*command) as process:
            assert process.exit_code() == 3, process.log
            process.finish()
        lines = process.log.strip().splitlines()
        assert len(lines) == 1, process.log
        assert re.search(pattern, lines[0]), process.log
    findings = check(settings_for(database, redis_url))
    told = [each for each in findings if each.grade == "wrong" and each.what == what]
    assert [bool(re.search(f"^{found}$", each.found)) for each in told] == [True], findings
    assert exit_code(told) == 3


@pytest.mark.parametrize(
    ("how", "where"),
    [
        ("ALTER ROLE {role} IN DATABASE {database} SET {setting}", "role .+ in this database"),
        ("ALTER DATABASE {database} SET {setting}", "this database"),
    ],
)
def test_database_without_writes_is_refused(database: Database, redis_url: str, how: str, where: str) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as owner:
        named = {"role": "CURRENT_USER", "database": database.name, "setting": "default_transaction_read_only = on"}
        owner.execute(how.format(**named))
    seen = Database(database.name, database.dsn)
    found = rf"read-only \(default_transaction_read_only is on for {where}\)"
    _is_refused(seen, redis_url, "database role", found)
    with Stack(seen, redis_url, Path("/dev/null")).command("status") as status:
        assert status.exit_code() == 0, status.log


def test_read_only_in_the_dsn_is_refused(database: Database, redis_url: str) -> None:
    dsn = f"{database.dsn}?options=-c%20default_transaction_read_only%3Don"
    found = r"read-only \(default_transaction_read_only is on for the DSN\)"
    _is_refused(Database(database.name, dsn), redis_url, "database role", found, ["dispatcher"])


def test_tables_off_the_search_path_are_refused(database: Database, redis_url: str) -> None:
    execute(database, "CREATE SCHEMA orcheo")
    execute(database, "ALTER TABLE workflow_runs SET SCHEMA orcheo")
    seen = Database(database.name, database.dsn)
    found = r'workflow_runs is in schema orcheo, which search_path \("\$user", public\) does not include'
    _is_refused(seen, redis_url, "Orcheo's tables", found, *_WRITERS, ["status"], ["runs"])


def test_tables_on_the_search_path_of_a_role_are_found(database: Database, redis_url: str, tmp_path: Path) -> None:
    """Orcheo in a schema of its own: its role, and ours, name it."""
    execute(database, "CREATE SCHEMA orcheo")
    for row in everything(database, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
        execute(database, f"ALTER TABLE public.{row['tablename']} SET SCHEMA orcheo")
    seen = Database(database.name, database.dsn)
    give(seen, [seen.dsn], {"search_path": "orcheo, public"})
    insert_runs(seen, 3)
    stack = Stack(seen, redis_url, tmp_path / "effects")
    with stack.running("dispatcher"), stack.running("worker"):
        until(lambda: all_are(seen, "succeeded"), what="all runs succeeded")
    assert exit_code(check(settings_for(seen, redis_url))) == 0


def test_schema_that_the_role_may_not_use_is_refused(database: Database, redis_url: str, roles: Roles) -> None:
    execute(database, "REVOKE USAGE ON SCHEMA public FROM PUBLIC, " + roles.group(Kind.DISPATCHER))
    seen = database.seen_by(Kind.DISPATCHER)
    found = "workflow_runs is in schema public, which role .+ may not use"
    _is_refused(seen, redis_url, "Orcheo's tables", found, ["dispatcher"])


def test_second_table_of_runs_is_told(database: Database, redis_url: str) -> None:
    execute(database, "CREATE SCHEMA staging")
    execute(database, _TABLE_OF_RUNS.format(schema="staging"))
    told = [each for each in check(settings_for(database, redis_url)) if each.what == "Orcheo's tables"]
    assert [(each.grade, each.found) for each in told] == [
        ("ok", "workflow_runs is there"),
        ("warn", "workflow_runs is in several schemas: public, staging"),
    ]


@pytest.mark.parametrize("table", ["workflow_runs", "orcheo_dispatch.dispatch", "orcheo_dispatch.process"])
def test_policies_that_may_hide_rows_are_refused(database: Database, redis_url: str, roles: Roles, table: str) -> None:
    execute(database, f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    found = f"policies may hide rows of {re.escape(table)} from this role"
    seen = database.seen_by(Kind.DISPATCHER)
    _is_refused(seen, redis_url, "row-level security", found, ["dispatcher"], ["poll"])
    # For one tenant, for reading alone, for others: none of these shows everything.
    columns = "workflow_id" if table != "orcheo_dispatch.process" else "host"
    execute(database, f"CREATE POLICY tenant ON {table} USING ({columns} = current_setting('app.tenant', true))")
    execute(database, f"CREATE POLICY reads ON {table} FOR SELECT USING (true)")
    execute(database, f"CREATE POLICY others ON {table} TO {roles.group(Kind.DASHBOARD)} USING (true)")
    _is_refused(seen, redis_url, "row-level security", found, ["dispatcher"])
    execute(database, f"CREATE POLICY ours ON {table} TO {roles.group(Kind.DISPATCHER)} USING (true)")
    assert [each for each in check(settings_for(seen, redis_url), ProcessKind.DISPATCHER) if each.exit_code == 3] == []
    # What restricts is joined by AND.
    execute(database, f"CREATE POLICY less ON {table} AS RESTRICTIVE USING ({columns} <> 'hidden')")
    _is_refused(seen, redis_url, "row-level security", found, ["dispatcher"])


def test_policies_that_hide_nothing_work(database: Database, redis_url: str, roles: Roles, tmp_path: Path) -> None:
    for table in ("workflow_runs", "orcheo_dispatch.dispatch", "orcheo_dispatch.process", "orcheo_dispatch.ended"):
        execute(database, f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        for kind in (Kind.DISPATCHER, Kind.WORKER):
            execute(database, f"CREATE POLICY {kind} ON {table} TO {roles.group(kind)} USING (true)")
    insert_runs(database, 3)
    stack = Stack(database, redis_url, tmp_path / "effects")
    with stack.running("dispatcher"), stack.running("worker"):
        until(lambda: all_are(database, "succeeded"), what="all runs succeeded")


def test_names_of_parts_are_those_that_migrations_make(database: Database) -> None:
    names = [row["name"].partition(".")[2] for row in everything(database, _DEFINED)]
    assert sorted(names) == sorted((*parts.FUNCTIONS, *parts.FIGURES, *parts.INDEXES, *parts.VIEWS))
    with store_of(database) as (_, engine), engine.connect() as connection:
        assert sorted(parts.definitions(connection)) == sorted(names)


_DEFINED = """
SELECT oid::regclass::text AS name FROM pg_class AS c
 WHERE relnamespace = 'orcheo_dispatch'::regnamespace AND relkind IN ('v', 'i')
   AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = c.oid)
 UNION ALL
SELECT 'orcheo_dispatch.' || proname FROM pg_proc
 WHERE pronamespace = 'orcheo_dispatch'::regnamespace AND proname NOT IN ('wake', 'begin_once')
"""
# A view that is made of its own text may be written in another way.
_DEFINITIONS = """
SELECT a.attrelid::regclass::text AS name, string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', '
           ORDER BY attnum) AS made
  FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
 WHERE relnamespace = 'orcheo_dispatch'::regnamespace AND relkind = 'v'
 GROUP BY 1
 UNION ALL
SELECT oid::regclass::text, pg_get_indexdef(oid)
  FROM pg_class WHERE relnamespace = 'orcheo_dispatch'::regnamespace AND relkind = 'i'
 UNION ALL
SELECT proname, pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'orcheo_dispatch'::regnamespace
 ORDER BY 1
"""


def test_what_was_dropped_is_told_and_made_again(database: Database, redis_url: str) -> None:
    before = everything(database, _DEFINITIONS)
    insert_runs(database)
    # allow_list has others that read it.
    for what in ("VIEW orcheo_dispatch.allow_list CASCADE", "INDEX orcheo_dispatch.dispatch_settled"):
        execute(database, f"DROP {what}")
    settings = settings_for(database, redis_url)
    (told,) = [each for each in check(settings) if each.what == "views and indexes"]
    assert told.grade == "warn"
    assert {"dispatch_settled", "allow_list", "pending_kpi"} <= set(re.findall(r"\w+", told.found))
    assert set(migrate(settings).made_again) == set(re.findall(r"\w+", told.found)) - {"missing"}
    assert everything(database, _DEFINITIONS) == before
    assert [each for each in check(settings) if each.what == "views and indexes"] == []
    assert migrate(settings).made_again == ()


def test_runs_go_on_without_views_and_indexes(database: Database, redis_url: str) -> None:
    for view in views_of(database):
        execute(database, f"DROP VIEW IF EXISTS {view} CASCADE")
    for index in parts.INDEXES:
        execute(database, f"DROP INDEX orcheo_dispatch.{index}")
    (run_id,) = insert_runs(database)
    settings = settings_for(database, redis_url)
    installation = find_installation(settings)
    app = make_dispatcher_app(settings, installation)
    dispatcher = Dispatcher(settings, app, installation)
    try:
        assert dispatcher.poller.poll().published == 1
    finally:
        dispatcher.close()
        app.close()
    assert ledger(database, run_id)["state"] == "claimed"
    assert read_run(database, run_id)["status"] == "pending"


def test_function_that_was_dropped_is_refused_and_made_again(database: Database, redis_url: str) -> None:
    execute(database, "DROP FUNCTION orcheo_dispatch.moved")
    seen = Database(database.name, database.dsn)
    _is_refused(seen, redis_url, "our schema", "moved is missing", ["dispatcher"], ["worker"])
    assert migrate(settings_for(database)).made_again == ("moved",)
    if database.roles:
        grant(database, database.roles)
    assert exit_code(check(settings_for(database, redis_url))) == 0


def test_old_revision_is_refused(database: Database, redis_url: str) -> None:
    execute(database, "UPDATE orcheo_dispatch.alembic_version SET version_num = '0001'")
    with Stack(Database(database.name, database.dsn), redis_url, Path("/dev/null")).command("dispatcher") as process:
        assert process.exit_code() == 3
        process.finish()
    assert re.fullmatch(
        r"orcheo-dispatch: schema orcheo_dispatch is at revision 0001, this release needs \d+: "
        r"run 'orcheo-dispatch migrate'",
        process.log.strip(),
    )
