"""The bad neighbours: code of runs, rows, tables, messages, and who reads the log."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import psycopg
import redis

from tests.neighbours.acts import OFFENDERS
from tests.support.database.databases import Database
from tests.support.database.runs import WORKSPACE_ID, execute, insert_runs, insert_workflow, installation_of

_LOCK_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a case takes place."""

    database: Database
    redis_url: str


type Bad = Callable[[Place], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Case:
    """A bad neighbour."""

    name: str
    bad: Bad
    repeats: bool
    """Whether it is the code of a workflow, which `adaptive` isolates from its second run on."""
    settings: tuple[tuple[str, str], ...] = ()
    """What the worker is to be started with."""
    delay: float = 0.0
    """Seconds for which nobody can do better than wait."""
    inherent: Mapping[str, str] = field(default_factory=dict)
    """Why this harms good runs all the same, by policy."""


def _code(name: str, count: int = 2) -> Bad:
    """Have runs of one workflow do this; the same one each time."""
    workflow_id, version_id = str(uuid4()), str(uuid4())

    @contextmanager
    def bad(place: Place) -> Iterator[None]:
        with psycopg.connect(place.database.dsn, autocommit=True) as connection:
            insert_workflow(connection, workflow_id)
        insert_runs(place.database, count, workflow_id=workflow_id, version_id=version_id, inputs={"do": name})
        yield

    return bad


def _run(place: Place, **inputs: Any) -> str:
    """Insert a run that waits, of a workflow of its own."""
    workflow_id = str(uuid4())
    with psycopg.connect(place.database.dsn, autocommit=True) as connection:
        insert_workflow(connection, workflow_id)
    do = inputs or {"do": "wait", "seconds": 2}
    return insert_runs(place.database, workflow_id=workflow_id, version_id=str(uuid4()), inputs=do)[0]


@contextmanager
def _locking(place: Place, statement: str, *parameters: Any, seconds: float = _LOCK_SECONDS) -> Iterator[None]:
    """Hold what a statement locks, for as long as the block lasts or for this many seconds."""
    with psycopg.connect(place.database.dsn) as holder:
        holder.execute(statement, parameters)
        release = threading.Timer(seconds, holder.rollback)
        release.start()
        try:
            yield
        finally:
            release.cancel()
            release.join()
            holder.rollback()


def _locked(table: str, key: str, state: str) -> Bad:
    """Lock the row of one run in this state."""

    @contextmanager
    def bad(place: Place) -> Iterator[None]:
        run_id = _run(place)
        if state == "running":
            _wait_for(place, run_id, "running")
        with _locking(place, f"SELECT FROM {table} WHERE {key} = %s FOR UPDATE", run_id):
            yield

    return bad


def _wait_for(place: Place, run_id: str, status: str) -> None:
    deadline = threading.Event()
    with psycopg.connect(place.database.dsn, autocommit=True) as connection:
        for _ in range(100):
            row = connection.execute("SELECT status FROM workflow_runs WHERE id = %s", [run_id]).fetchone()
            if row == (status,):
                return
            deadline.wait(0.1)


def _refused(table: str, when: str, raises: str) -> Bad:
    """Refuse, by a trigger, what is done to the rows of one run."""

    @contextmanager
    def bad(place: Place) -> Iterator[None]:
        run_id = str(uuid4())
        key = "run_id" if "dispatch" in table else "id"
        # Several of these may hold at a time.
        name = f"refuse_{'_'.join([table.rpartition('.')[2], *when.lower().split()])}"
        execute(
            place.database,
            f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF EXISTS (SELECT FROM poison WHERE id = NEW.{key}) THEN {raises} END IF; RETURN NEW; END $$",
        )
        execute(place.database, "CREATE TABLE IF NOT EXISTS poison (id text)")
        execute(place.database, "GRANT SELECT ON poison TO PUBLIC")
        execute(place.database, f"CREATE TRIGGER {name} {when} ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()")
        try:
            run_id = _run(place)
            execute(place.database, "INSERT INTO poison VALUES (%s)", run_id)
            yield
        finally:
            execute(place.database, f"DROP TRIGGER {name} ON {table}")

    return bad


@contextmanager
def _table_locked(place: Place) -> Iterator[None]:
    with _locking(place, "LOCK TABLE workflow_runs IN ACCESS EXCLUSIVE MODE", seconds=12):
        yield


@contextmanager
def _infinite(place: Place) -> Iterator[None]:
    run_id = _run(place)
    execute(place.database, "UPDATE workflow_runs SET created_at = 'infinity' WHERE id = %s", run_id)
    yield


def _configured(config: str) -> Bad:
    @contextmanager
    def bad(place: Place) -> Iterator[None]:
        run_id = _run(place)
        execute(
            place.database,
            "UPDATE workflow_runs SET payload = jsonb_set(payload, '{runnable_config}', %s::jsonb) WHERE id = %s",
            config,
            run_id,
        )
        yield

    return bad


def _message(*bodies: bytes) -> Bad:
    @contextmanager
    def bad(place: Place) -> Iterator[None]:
        installation = installation_of(place.database, redis_url=place.redis_url)
        with redis.Redis.from_url(place.redis_url) as client:
            for body in bodies:
                client.lpush(installation.runs, body)
        yield

    return bad


@contextmanager
def _workspaces(place: Place) -> Iterator[None]:
    """A hundred workspaces with a run each."""
    with psycopg.connect(place.database.dsn, autocommit=True) as connection:
        for _ in range(100):
            workspace, workflow = str(uuid4()), str(uuid4())
            insert_workflow(connection, workflow, owner=workspace)
            insert_runs(
                place.database,
                workspace_id=workspace,
                workflow_id=workflow,
                version_id=str(uuid4()),
                inputs={"do": "wait", "seconds": 0.2},
            )
    yield


@contextmanager
def _flood(place: Place) -> Iterator[None]:
    """A thousand runs of one workflow, of a workspace of their own."""
    workspace, workflow = str(uuid4()), str(uuid4())
    with psycopg.connect(place.database.dsn, autocommit=True) as connection:
        insert_workflow(connection, workflow, owner=workspace)
    insert_runs(
        place.database,
        1000,
        workspace_id=workspace,
        workflow_id=workflow,
        version_id=str(uuid4()),
        inputs={"do": "echo"},
    )
    yield


@contextmanager
def _nobody(_: Place) -> Iterator[None]:
    yield


NOBODY = Case("nobody", _nobody, repeats=False)
_SHORT_TIMEOUT = (("ORCHEO_WORKER_RUN_TIMEOUT", "5"),)
_LITTLE_MEMORY = (("ORCHEO_WORKER_MAX_MEMORY", "200"),)
_SETTINGS = {
    "memory": _LITTLE_MEMORY,
    **dict.fromkeys(
        ("backtrack", "cancellation swallowed", "SIGSTOP", "clock stopped", "block later", "block in 4 s"),
        _SHORT_TIMEOUT,
    ),
}
_INHERENT = {
    "kill the parent": dict.fromkeys(
        ("requeue", "fail"), "it kills the fork server on purpose, and with it every runner of the worker"
    )
}
CASES = (
    *(
        Case(name, _code(name), repeats=True, settings=_SETTINGS.get(name, ()), inherent=_INHERENT.get(name, {}))
        for name in OFFENDERS
    ),
    Case("row of a pending run locked", _locked("workflow_runs", "id", "pending"), repeats=False),
    Case("row of a running run locked", _locked("workflow_runs", "id", "running"), repeats=False),
    Case("ledger row of a running run locked", _locked("orcheo_dispatch.dispatch", "run_id", "running"), repeats=False),
    Case("table locked for 12 s", _table_locked, repeats=False, delay=12.0),
    *(
        Case(f"{what} refused ({how})", _refused(table, when, raises), repeats=False)
        for what, table, when in (
            ("change of a run", "workflow_runs", "BEFORE UPDATE"),
            ("change in the ledger", "orcheo_dispatch.dispatch", "BEFORE UPDATE"),
            ("entry in the ledger", "orcheo_dispatch.dispatch", "BEFORE INSERT"),
        )
        for how, raises in (
            ("P0001", "RAISE EXCEPTION 'no';"),
            ("57014", "RAISE query_canceled;"),
            ("40001", "RAISE serialization_failure;"),
            ("23514", "RAISE check_violation;"),
            ("08006", "RAISE connection_failure;"),
            ("silently", "RETURN NULL;"),
        )
    ),
    Case("created_at = infinity", _infinite, repeats=False),
    *(
        Case(f"runnable_config = {config[:40]}", _configured(config), repeats=False)
        for config in (
            '"text"',
            "[1]",
            json.dumps({"metadata": {"run_timeout_seconds": 10**400}}),
            '{"metadata": "text"}',
        )
    ),
    Case("forged messages", _message(b"", b"\xff\xfe", b"{}", b'{"body": 1}', b"[" * 10_000), repeats=False),
    Case("huge message", _message(b'{"body": "' + b"x" * 20_000_000 + b'"}'), repeats=False),
    Case("100 workspaces", _workspaces, repeats=False),
    Case("1,000 runs of another workspace", _flood, repeats=False),
)
WORKSPACE = WORKSPACE_ID
