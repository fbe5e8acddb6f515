"""The roles of `ops/sql/roles.sql`: enough for their work, no right too many, and `check` knows what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import Connection, TextClause, text

from orcheo_dispatch.dispatcher import backlog
from orcheo_dispatch.ops.host.check import check
from orcheo_dispatch.ops.host.rights import lacking, roles_sql
from orcheo_dispatch.ops.runs import list as list_of_runs
from orcheo_dispatch.ops.runs.list import Wanted, find_runs
from orcheo_dispatch.ops.sandbox.binaries import postgres_binaries
from orcheo_dispatch.shared.database.connections import database_errors
from orcheo_dispatch.shared.errors import SchemaError
from orcheo_dispatch.shared.ledger import overview
from orcheo_dispatch.shared.ledger import status as queries
from orcheo_dispatch.shared.ledger.runs import Ending, Run
from orcheo_dispatch.shared.schema import revision
from orcheo_dispatch.shared.settings.policies import LostRuns
from tests.support.database.databases import Database, grant
from tests.support.database.roles import Kind, Roles
from tests.support.database.runs import (
    claim_all,
    everything,
    execute,
    insert_runs,
    ledger,
    read_run,
    settings_for,
    store_of,
)
from tests.support.database.statements import PARAMETERS, STATEMENTS
from tests.support.database.views import views_of
from tests.support.processes.processes import Stack

pytestmark = pytest.mark.usefixtures("roles")

# Whether to show runs that are running; elsewhere it is how many are.
_OF_THE_PAGE = {"running": False}
_PAGE = [query for query in vars(overview).values() if isinstance(query, TextClause)]
_GAUGES = [query for query in vars(backlog).values() if isinstance(query, TextClause)]
_OF_A_WORKER_ALONE = {"BEGIN", "BEGUN", "ENDED_BY_API", "HEARTBEAT", "RECORD_HARM", "REFUSE", "SETTLE"}
_OF_BOTH = {"CLOSE_TRACES", "GONE", "ISOLATED", "PRUNE_ISOLATION", "SEEN", "SLOTS_RETURNED"}
_OF_BOTH |= {"ALERT_LEAD", "ALERT_LEAVE", "ALERT_SEEN", "ALERT_KEEP", "ALERT_CLAIM", "ALERT_TOLD", "ALERT_UNSENT"}
_OF_BOTH |= {"ALERT_DISPATCHERS"}
_QUERIES = [
    query
    for name, query in {**vars(queries), **vars(overview)}.items()
    # Names of workflows are asked for only by a role that may know them.
    if isinstance(query, TextClause) and name not in {"_NAMES", "_HANDLES"}
]


def _statements_of(kind: Kind) -> list[TextClause]:
    every = set(STATEMENTS)
    names = {
        Kind.DISPATCHER: every - _OF_A_WORKER_ALONE,
        Kind.WORKER: _OF_A_WORKER_ALONE | _OF_BOTH,
        Kind.DASHBOARD: set(),
    }[kind]
    read = [queries.PENDING, queries.DISPATCH, queries._PROCESSES] if kind is Kind.WORKER else _QUERIES
    read = [*read, list_of_runs._FOUND]
    read = [*read, text("SELECT FROM orcheo_dispatch.policies"), STATEMENTS["HELD_BACK"], STATEMENTS["POLICIES"]]
    if kind is Kind.DISPATCHER:
        read = [*read, text("SELECT FROM orcheo_dispatch.operations")]
        read = [*read, *_GAUGES, text("SELECT orcheo_dispatch.last_checkpoint('x')")]
    if kind is Kind.WORKER:
        # Read by `retry_delay`, which ignores a policy that it may not read: a run must end nevertheless.
        read = [*read, text("SELECT config FROM retry_policies WHERE workflow_id = 'x'")]
    return [text(revision._REVISION), *read, *(STATEMENTS[name] for name in sorted(names))]


@contextmanager
def _connected(database: Database, kind: Kind) -> Iterator[Connection]:
    with store_of(database.seen_by(kind), connections=1) as (_, engine), engine.connect() as connection:
        yield connection


def _try_all(connection: Connection, kind: Kind) -> None:
    """Run each statement of this kind of process; what they find does not matter."""
    for statement in _statements_of(kind):
        values = PARAMETERS | (_OF_THE_PAGE if statement in _PAGE else {})
        parameters = {name: values[name] for name in statement.compile().params}
        try:
            with database_errors():
                connection.execute(statement, parameters)
        finally:
            connection.rollback()


def test_dispatcher_does_its_work(database: Database) -> None:
    first, second = insert_runs(database, 2)
    with store_of(database.seen_by(Kind.DISPATCHER)) as (store, _):
        claims = {claim.run_id: claim for claim in claim_all(store)}
        store.mark_published(claims.values())
        store.release([claims[second]], reason="test")
        with store_of(database.seen_by(Kind.WORKER)) as (worker, _):
            assert isinstance(worker.begin(claims[first], worker_id=uuid4(), lease=30), Run)
        execute(database, "UPDATE orcheo_dispatch.dispatch SET lease_expires_at = now() WHERE state = 'running'")
        assert len(store.reap(LostRuns.FAIL, max_attempts=3, lease=0, batch=10)) == 1
        execute(
            database,
            "INSERT INTO execution_history (execution_id, workflow_id, inputs, status, started_at)"
            " VALUES (%s, 'w', '{}', 'running', now())",
            first,
        )
        assert store.close_traces([first]) == 1
        assert [run for run, _ in store.slots_due(older_than=0, batch=10)] == [first]
        store.slots_returned([first])
    assert read_run(database, first)["status"] == "failed"
    assert ledger(database, second)["outcome"] == "released"


def test_worker_begins_beats_and_settles(database: Database) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (owner, _), store_of(database.seen_by(Kind.WORKER)) as (store, _):
        (claim,) = claim_all(owner)
        assert isinstance(store.begin(claim, worker_id=uuid4(), lease=30), Run)
        assert store.heartbeat([claim], lease=30) == {claim: True}
        assert store.settle(claim, Ending.succeeded('{"final_state": 1}')) is not None
    assert read_run(database, run_id)["payload"]["output_payload"] == {"final_state": 1}


@pytest.mark.parametrize("kind", Kind)
def test_every_role_reads_what_status_and_runs_show(database: Database, kind: Kind) -> None:
    insert_runs(database, 2)
    with store_of(database.seen_by(kind)) as (_, engine):
        status = queries.read_status(engine)
        assert (status.pending, status.runs) == (2, {"pending": 2})
        assert len(find_runs(engine, Wanted())) == 2


def test_every_statement_is_somebodys() -> None:
    used = {id(statement) for kind in Kind for statement in _statements_of(kind)}
    assert [name for name, statement in STATEMENTS.items() if id(statement) not in used] == []


@pytest.mark.parametrize("kind", Kind)
def test_roles_rights_are_enough_for_its_statements(database: Database, kind: Kind) -> None:
    with _connected(database, kind) as connection:
        _try_all(connection, kind)


@pytest.mark.parametrize("kind", [Kind.DISPATCHER, Kind.WORKER])
def test_no_right_is_one_too_many(database: Database, roles: Roles, kind: Kind) -> None:
    """Take each away in turn: some statement is refused, and `check` would have said so."""
    granted = _rights_of(database, roles.group(kind))
    assert len(granted) > 20
    with _connected(database, kind) as connection:
        for right in granted:
            execute(database, f"REVOKE {right} FROM {roles.group(kind)}")
            with pytest.raises(SchemaError, match="permission denied"):
                _try_all(connection, kind)
            lacks = lacking(connection)
            connection.rollback()
            missing = lacks.dispatcher if kind is Kind.DISPATCHER else lacks.worker
            assert missing or lacks.traces or "alembic_version" in right, right
            execute(database, f"GRANT {right} TO {roles.group(kind)}")
        _try_all(connection, kind)


@pytest.mark.parametrize("kind", Kind)
def test_role_reaches_no_other_table(database: Database, roles: Roles, kind: Kind) -> None:
    """Not the credentials, the workflows, the workspaces, the checkpoints: nothing but what is named."""
    reached = everything(
        database,
        "SELECT oid::regclass::text AS name FROM pg_class WHERE relkind IN ('r', 'v', 'm', 'S', 'f', 'p')"
        " AND relnamespace::regnamespace::text NOT IN ('pg_catalog', 'information_schema', 'pg_toast')"
        " AND (has_any_column_privilege(%(role)s, oid, 'SELECT, INSERT, UPDATE, REFERENCES')"
        "      OR has_table_privilege(%(role)s, oid, 'DELETE, TRUNCATE, TRIGGER'))".replace(
            "%(role)s", f"'{roles.login(kind)}'"
        ),
    )
    ours = {"orcheo_dispatch.alembic_version", "orcheo_dispatch.dispatch", "orcheo_dispatch.process"}
    ours.add("orcheo_dispatch.isolation")
    # `status` and `run` read them with every role.
    ours |= {"orcheo_dispatch.all_pending_runs", "orcheo_dispatch.live_runs", "orcheo_dispatch.processes"}
    ours |= {"orcheo_dispatch.retry", "orcheo_dispatch.question"}
    ours |= {"orcheo_dispatch.alert", "orcheo_dispatch.teller"}
    ours |= {"orcheo_dispatch.retrying_runs", "orcheo_dispatch.dead_runs", "orcheo_dispatch.waiting_runs"}
    ours |= {"orcheo_dispatch.policy", "orcheo_dispatch.policies", "orcheo_dispatch.held_back_runs"}
    if kind is not Kind.WORKER:
        ours |= {"orcheo_dispatch.ended", "orcheo_dispatch.operation"}
    traces = {"execution_history", "execution_history_steps"}
    more = {
        Kind.DASHBOARD: views_of(database),
        Kind.DISPATCHER: {
            *traces,
            "orcheo_dispatch.pending_kpi",
            "orcheo_dispatch.stuck_runs",
            "orcheo_dispatch.unclaimed_runs",
            "orcheo_dispatch.begun_elsewhere",
            "orcheo_dispatch.isolated_workflows",
            "orcheo_dispatch.operations",
            "orcheo_dispatch.rate_use",
            # Which there are, for `isolate`, and not what they do.
            "workflows",
            "workflow_versions",
            # Which is the last of a run, and not what is in it.
            "checkpoints",
        },
        # Whose a workflow is, and not what it does.
        Kind.WORKER: {*traces, "workflows", "retry_policies"},
    }[kind]
    assert {row["name"] for row in reached} == {"workflow_runs", *ours, *more}


def test_dashboard_reads_every_view_and_writes_to_none(database: Database) -> None:
    views = views_of(database)
    assert len(views) > 10
    with psycopg.connect(database.dsn_of(Kind.DASHBOARD), autocommit=True) as connection:
        for view in views:
            connection.execute(f"SELECT * FROM {view}")
            with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.ObjectNotInPrerequisiteState)):
                connection.execute(f"DELETE FROM {view}")


_NOBODYS = (
    "DELETE FROM workflow_runs",
    "TRUNCATE workflow_runs",
    "INSERT INTO workflow_runs (id) VALUES ('x')",
    "UPDATE workflow_runs SET workflow_id = 'x'",
    "UPDATE workflow_runs SET workspace_id = 'x'",
    "UPDATE workflow_runs SET triggered_by = 'x'",
    "SELECT payload FROM workflow_versions",
    "SELECT payload FROM credentials",
    "SELECT inputs FROM execution_history",
    "SELECT payload FROM execution_history_steps",
    "DROP TABLE orcheo_dispatch.dispatch",
    "CREATE TABLE orcheo_dispatch.more ()",
    "UPDATE orcheo_dispatch.alembic_version SET version_num = '0'",
)
_FORBIDDEN = {
    Kind.DISPATCHER: _NOBODYS,
    Kind.WORKER: (
        *_NOBODYS,
        "INSERT INTO orcheo_dispatch.dispatch (run_id) VALUES ('x')",
        "UPDATE orcheo_dispatch.dispatch SET fence = fence + 1",
        "DELETE FROM orcheo_dispatch.dispatch",
    ),
    Kind.DASHBOARD: (
        *_NOBODYS,
        "SELECT payload FROM workflow_runs",
        "SELECT * FROM workflow_runs",
        "SELECT to_jsonb(r) FROM workflow_runs AS r",
        "SELECT FROM workflow_runs WHERE payload ->> 'error' IS NOT NULL",
        "UPDATE workflow_runs SET status = 'pending'",
        "SELECT id FROM workflow_runs FOR UPDATE",
        "INSERT INTO orcheo_dispatch.dispatch (run_id) VALUES ('x')",
        "UPDATE orcheo_dispatch.dispatch SET state = 'settled'",
        "DELETE FROM orcheo_dispatch.process",
    ),
}


@pytest.mark.parametrize("kind", Kind)
def test_role_is_refused(database: Database, kind: Kind) -> None:
    with psycopg.connect(database.dsn_of(kind), autocommit=True) as connection:
        assert [statement for statement in _FORBIDDEN[kind] if not _refused(connection, statement)] == []


def _refused(connection: psycopg.Connection[Any], statement: str) -> bool:
    try:
        connection.execute(statement)
    except psycopg.errors.InsufficientPrivilege:
        return True
    return False


def test_dashboard_reads_all_of_a_run_but_its_payload(database: Database) -> None:
    (run_id,) = insert_runs(database)
    (row,) = everything(
        database.seen_by(Kind.DASHBOARD),
        "SELECT id, workflow_id, workflow_version_id, workspace_id, triggered_by, status, created_at, updated_at"
        " FROM workflow_runs",
    )
    columns = everything(
        database, "SELECT attname FROM pg_attribute WHERE attrelid = 'workflow_runs'::regclass AND attnum > 0"
    )
    assert row["id"] == run_id
    assert {column["attname"] for column in columns} - set(row) == {"payload"}


def test_roles_sql_may_be_run_again_and_takes_back_what_it_does_not_grant(database: Database, roles: Roles) -> None:
    before = {kind: _rights_of(database, roles.group(kind)) for kind in Kind}
    for kind in Kind:
        execute(database, f"GRANT ALL ON workflow_runs, orcheo_dispatch.dispatch TO {roles.group(kind)}")
        execute(database, f"GRANT SELECT (payload) ON workflow_runs TO {roles.group(kind)}")
    grant(database, roles)
    assert {kind: _rights_of(database, roles.group(kind)) for kind in Kind} == before


def test_later_tables_are_read_by_dashboards_and_written_by_nobody(database: Database, roles: Roles) -> None:
    insert_runs(database)
    execute(database, "CREATE VIEW orcheo_dispatch.later AS SELECT id, status FROM workflow_runs")
    assert len(everything(database.seen_by(Kind.DASHBOARD), "SELECT * FROM orcheo_dispatch.later")) == 1
    for kind in Kind:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            execute(database.seen_by(kind), "DELETE FROM orcheo_dispatch.later")


def test_operators_way_from_migrate_to_check(
    orcheo_database: Database, roles: Roles, redis_url: str, tmp_path: Path
) -> None:
    """As the README says it: `orcheo-dispatch migrate`, `orcheo-dispatch roles | psql`, `orcheo-dispatch check`."""
    dispatcher = replace(orcheo_database, roles=roles).seen_by(Kind.DISPATCHER)
    traces = ("execution_history_steps", "execution_history")
    for table in traces:
        execute(orcheo_database, f"ALTER TABLE {table} RENAME TO {table}_later")
    with Stack(orcheo_database, redis_url, tmp_path / "side-effects").command("migrate") as process:
        assert process.exit_code() == 0
    assert "run this again when it has" in _psql(orcheo_database, roles.sql)
    found = _checked(dispatcher, redis_url)
    assert found["rights"] == ("ok", "enough for a dispatcher")
    assert {grade for grade, _ in found.values()} == {"ok", "warn"}
    for table in traces:
        execute(orcheo_database, f"ALTER TABLE {table}_later RENAME TO {table}")
    assert _checked(dispatcher, redis_url)["traces"][0] == "warn"
    _psql(orcheo_database, roles.sql)
    assert "traces" not in _checked(dispatcher, redis_url)


def test_check_names_the_rights_that_are_missing(database: Database, roles: Roles, redis_url: str) -> None:
    def rights(kind: Kind, executor: str = "orcheo") -> tuple[str, str]:
        return _checked(database.seen_by(kind), redis_url, executor)["rights"]

    assert _checked(database, redis_url)["rights"] == ("ok", "enough for a dispatcher and a worker")
    assert rights(Kind.WORKER, "mine:run") == ("ok", "enough for a worker with an executor of your own")
    assert rights(Kind.WORKER)[0] == "wrong"
    grade, found = rights(Kind.DASHBOARD)
    assert grade == "wrong"
    assert "UPDATE (payload, status, updated_at) ON workflow_runs" in found
    execute(database, f"REVOKE UPDATE (payload) ON workflow_runs FROM {roles.group(Kind.DISPATCHER)}")
    assert rights(Kind.DISPATCHER) == ("wrong", "a dispatcher lacks UPDATE (payload) ON workflow_runs")
    execute(database, f"REVOKE USAGE ON SCHEMA orcheo_dispatch FROM {roles.group(Kind.DISPATCHER)}")
    assert rights(Kind.DISPATCHER) == ("wrong", "a dispatcher lacks USAGE ON SCHEMA orcheo_dispatch")


def test_missing_rights_are_one_line(database: Database, roles: Roles) -> None:
    execute(database, f"REVOKE SELECT (created_at) ON workflow_runs FROM {roles.group(Kind.DISPATCHER)}")
    with store_of(database.seen_by(Kind.DISPATCHER)) as (store, _):
        with pytest.raises(SchemaError, match="permission denied") as raised:
            claim_all(store)
    assert "\n" not in str(raised.value)


def test_command_prints_the_sql_without_any_setting(database: Database, redis_url: str, tmp_path: Path) -> None:
    stack = Stack(database, redis_url, tmp_path / "side-effects")
    with stack.command("roles", ORCHEO_POSTGRES_DSN="", REDIS_URL="") as process:
        assert process.exit_code() == 0
        process.finish()
        assert process.log == roles_sql()


def _rights_of(database: Database, role: str) -> list[str]:
    """Return what is granted to a role in the database, as GRANT and REVOKE take it; not what all have anyway."""
    rows = everything(
        database,
        """
SELECT format('%%s (%%I) ON %%s', acl.privilege_type, a.attname, a.attrelid::regclass) AS grant
  FROM pg_attribute AS a, aclexplode(a.attacl) AS acl WHERE acl.grantee = %s::regrole
 UNION ALL
SELECT format('%%s ON %%s', acl.privilege_type, c.oid::regclass)
  FROM pg_class AS c, aclexplode(c.relacl) AS acl WHERE acl.grantee = %s::regrole
 UNION ALL
SELECT format('%%s ON SCHEMA %%I', acl.privilege_type, n.nspname)
  FROM pg_namespace AS n, aclexplode(n.nspacl) AS acl
 WHERE acl.grantee = %s::regrole AND n.nspname = 'orcheo_dispatch'
 ORDER BY 1
""",
        *(role, role, role),
    )
    return [row["grant"] for row in rows]


def _psql(database: Database, script: str) -> str:
    done = subprocess.run(
        [shutil.which("psql") or postgres_binaries() / "psql", "--no-psqlrc", "--set=ON_ERROR_STOP=1", database.dsn],
        input=script,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def _checked(database: Database, redis_url: str, executor: str = "orcheo") -> dict[str, tuple[str, str]]:
    findings = check(settings_for(database, redis_url, executor=executor))
    return {finding.what: (finding.grade, finding.found) for finding in findings}
