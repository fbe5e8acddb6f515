"""Each SQL statement of the runbook is taken by a real database, and what it removes is all that we had made."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest

from orcheo_dispatch.ops.host import rights
from orcheo_dispatch.ops.sandbox.embedded import EmbeddedPostgres
from orcheo_dispatch.shared.schema.migrate import migrate
from tests.support.database.databases import Database
from tests.support.database.runs import everything, settings_for

RUNBOOK = (Path(__file__).parents[3] / "docs/runbook.md").read_text(encoding="utf-8")
_BLOCK = re.compile(r"^ *```sql\n(?P<sql>.*?)^ *```$", re.DOTALL | re.MULTILINE)
_TABLE = """
CREATE TABLE workflow_runs (id text PRIMARY KEY, workflow_id text NOT NULL, workflow_version_id text NOT NULL,
    status text NOT NULL, triggered_by text NOT NULL, payload jsonb NOT NULL, created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL, workspace_id text);
CREATE TABLE workflows (id text PRIMARY KEY, workspace_id text, is_archived boolean NOT NULL);
CREATE TABLE workflow_versions (id text PRIMARY KEY, workflow_id text NOT NULL, version integer NOT NULL);
"""
_PUBLIC = """
SELECT c.relname, c.reloptions, pg_get_indexdef(c.oid) AS definition FROM pg_class AS c
 WHERE c.relnamespace = 'public'::regnamespace ORDER BY c.relname
"""
_SCHEMAS = "SELECT nspname FROM pg_namespace WHERE left(nspname, 3) <> 'pg_' ORDER BY 1"
_ROLES = "SELECT rolname FROM pg_roles WHERE left(rolname, 7) = 'orcheo_' ORDER BY 1"


def _statements(block: str) -> list[str]:
    return [statement.strip() for statement in block.split(";") if statement.strip()]


BLOCKS = [block["sql"] for block in _BLOCK.finditer(RUNBOOK)]
REMOVING = [block for block in BLOCKS if "DROP " in block]
ASKING = [block for block in BLOCKS if block not in REMOVING]


@pytest.mark.parametrize("statement", [each for block in ASKING for each in _statements(block)])
def test_each_statement_is_taken(database: Database, statement: str) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute(statement.encode())


def test_uninstall_leaves_nothing_but_what_orcheo_has(orcheo_database: Database) -> None:
    before, schemas = everything(orcheo_database, _PUBLIC), everything(orcheo_database, _SCHEMAS)
    migrate(settings_for(orcheo_database))
    assert everything(orcheo_database, _PUBLIC) != before
    _run(orcheo_database.dsn, REMOVING[0])
    assert everything(orcheo_database, _PUBLIC) == before
    assert everything(orcheo_database, _SCHEMAS) == schemas


def test_uninstall_removes_the_roles(postgres_server: EmbeddedPostgres) -> None:
    """On a server of its own: roles belong to all databases of one."""
    _run(postgres_server.url, _TABLE)
    database = Database("postgres", postgres_server.url)
    migrate(settings_for(database))
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute(rights.roles_sql().encode())
    assert len(everything(database, _ROLES)) == 3
    for block in REMOVING:
        _run(postgres_server.url, block)
    assert everything(database, _ROLES) == []


def _run(dsn: str, block: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in _statements(block):
            connection.execute(statement.encode())
