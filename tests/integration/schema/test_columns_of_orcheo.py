"""The columns of Orcheo's and LangGraph's tables, as a start of a worker reads them."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.rows import dict_row

from orcheo_dispatch.worker.orcheo.opening.columns import SELECT_COLUMNS
from tests.support.database.databases import Database

_TABLES = (
    """CREATE TABLE workflows (plain text, required text NOT NULL, given text NOT NULL DEFAULT '',
                              number bigint NOT NULL GENERATED ALWAYS AS IDENTITY, text varchar(8) NOT NULL,
                              computed text NOT NULL GENERATED ALWAYS AS ('x') STORED, gone text NOT NULL)""",
    "ALTER TABLE workflows DROP COLUMN gone",
    "CREATE TABLE checkpoint_migrations (v integer PRIMARY KEY)",
    # Of other names, and of the same name where nobody looks.
    "CREATE TABLE runs (id text NOT NULL)",
    "CREATE SCHEMA elsewhere",
    "CREATE TABLE elsewhere.workflow_runs (id text NOT NULL)",
    "CREATE TABLE elsewhere.workflows (other text NOT NULL)",
)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (
            "public",
            {
                ("checkpoint_migrations", "v"): ("integer", True),
                ("workflows", "plain"): ("text", False),
                ("workflows", "required"): ("text", True),
                ("workflows", "given"): ("text", False),
                ("workflows", "number"): ("bigint", False),
                ("workflows", "text"): ("character varying", True),
                ("workflows", "computed"): ("text", False),
            },
        ),
        ("elsewhere", {("workflow_runs", "id"): ("text", True), ("workflows", "other"): ("text", True)}),
    ],
)
def test_columns_are_those_of_the_tables_on_the_search_path(
    empty_database: Database, path: str, found: dict[tuple[str, str], tuple[str, bool]]
) -> None:
    with psycopg.connect(empty_database.dsn, row_factory=dict_row, autocommit=True) as connection:
        for statement in _TABLES:
            connection.execute(statement.encode())
        connection.execute(f"SET search_path = {path}".encode())
        rows = connection.execute(SELECT_COLUMNS).fetchall()
    assert {(row["table_name"], row["column_name"]): (row["type"], row["required"]) for row in rows} == found
