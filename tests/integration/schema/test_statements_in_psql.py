"""Each statement of the ledger is whole: pasted into psql, with its parameters set, it runs as it stands."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from psycopg.sql import Literal
from sqlalchemy import TextClause

from orcheo_dispatch.ops.sandbox.binaries import postgres_binaries
from orcheo_dispatch.shared.ledger import overview, statements, status, story
from tests.support.database.databases import Database
from tests.support.database.runs import claim_all, everything, execute, insert_runs, store_of
from tests.support.database.statements import PARAMETERS, STATEMENTS

_READ = {
    f"{module.__name__.rpartition('.')[2]} {name}": value
    for module in (overview, status, story)
    for name, value in vars(module).items()
    if isinstance(value, TextClause)
}
_LEDGER = "SELECT d FROM orcheo_dispatch.dispatch AS d ORDER BY d.run_id"
_CHOOSES = {name for name, statement in STATEMENTS.items() if "choose" in statement.compile().params}


@pytest.fixture
def filled(database: Database) -> Database:
    """A database with runs in each state."""
    insert_runs(database, 12)
    with store_of(database) as (store, _):
        claims = claim_all(store, 8)
        store.mark_published(claims[:6])
        for claim in claims[:4]:
            store.begin(claim, worker_id=uuid4(), lease=30)
    execute(
        database, "UPDATE orcheo_dispatch.dispatch SET lease_expires_at = now() WHERE run_id = %s", claims[0].run_id
    )
    execute(database, "UPDATE workflow_runs SET status = 'cancelled' WHERE id = %s", claims[5].run_id)
    return database


def test_statement_runs_in_psql_on_an_empty_database(database: Database, tmp_path: Path) -> None:
    _run_all(database, tmp_path)


def test_statement_runs_in_psql_on_a_filled_database(filled: Database, tmp_path: Path) -> None:
    _run_all(filled, tmp_path)


def test_statement_that_only_chooses_changes_nothing(filled: Database) -> None:
    assert {"CLAIM", "CLAIM_OLDEST_FIRST", "REAP", "REAP_ORPHANS", "ADOPT_CANCELLED", "PRUNE"} <= _CHOOSES
    before = everything(filled, _LEDGER)
    with store_of(filled) as (_, engine), engine.begin() as connection:
        for name in _CHOOSES:
            statement = STATEMENTS[name]
            values = {
                **PARAMETERS,
                "choose": True,
                "from_start": True,
                "skipped": [],
                "room": 100,
                "batch": 100,
                "keys": 64,
            }
            values |= {"workspaces": None, "workflows": None, "per_workflow": None, "per_workspace": None}
            connection.execute(statement, {each: values[each] for each in statement.compile().params})
    assert everything(filled, _LEDGER) == before


def test_no_statement_is_glued_from_parts() -> None:
    """What `text` is given is one literal: no text filled in, none appended, no name of a text that others share."""
    paths = [*Path(statements.__path__[0]).glob("*.py"), Path(overview.__file__), Path(status.__file__)]
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "text":
                assert isinstance(node.args[0], ast.Constant), f"{path.name}:{node.lineno}"


def test_statements_enter_claims_in_one_way() -> None:
    """Three statements claim; what they write into the ledger is the same text."""
    entered = {
        re.sub(r"(?m)^ *--.*\n| *WHERE (?:NOT :choose AND \()?NOT c\.in_ledger.*\n", "", found[0])
        for name in ("CLAIM", "CLAIM_OLDEST_FIRST", "CLAIM_GIVEN")
        if (found := re.search(r"\), claimed AS \(.*?\n\)\n", STATEMENTS[name].text, re.DOTALL))
    }
    assert len(entered) == 1
    assert "ON CONFLICT (run_id) DO UPDATE" in entered.pop()


def _run_all(database: Database, folder: Path) -> None:
    scripts = {**STATEMENTS, **_READ}
    assert len(scripts) > 60
    script = folder / "statements.sql"
    with psycopg.connect(database.dsn) as connection:
        script.write_text("".join(_script(connection, name, statement) for name, statement in scripts.items()))
    command = [str(postgres_binaries() / "psql"), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1"]
    parts = urlsplit(database.dsn)
    assert parts.scheme.startswith("postgres"), "the test's database is named by a URL"
    done = subprocess.run(
        [*command, f"--file={script}", database.dsn], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]


def _script(connection: psycopg.Connection[Any], name: str, statement: TextClause) -> str:
    values = {**PARAMETERS, **({"running": False} if name.startswith("overview") else {})}
    # A policy is about a workspace or about a workflow.
    values |= {"workspace_id": ""} if name == "SET_POLICY" else {}
    lines = [f"\\echo {name}", "BEGIN;"]
    for each in statement.compile().params:
        literal = Literal(values[each]).as_string(connection).strip().replace("\\", "\\\\").replace("'", "''")
        lines.append(f"\\set {each} '{literal}'")
    return "\n".join([*lines, statement.text.strip() + ";", "ROLLBACK;", ""])
