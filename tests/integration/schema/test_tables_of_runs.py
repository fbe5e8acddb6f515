"""Which table of runs a role finds is told from the tables alone, not from views of the same name."""

from __future__ import annotations

from sqlalchemy import text

from orcheo_dispatch.shared.schema.footing import several_tables, unmet_to_read
from tests.support.database.comparing import RolledBack
from tests.support.database.rows import READER, become_reader

_MOVED = (
    "CREATE SCHEMA hidden",
    "ALTER TABLE workflow_runs SET SCHEMA hidden",
    "CREATE VIEW orcheo_dispatch.workflow_runs AS SELECT 1 AS id",
)


def test_view_beside_the_table_is_no_second_table(rolled_back: RolledBack) -> None:
    with rolled_back() as connection:
        for schema in ("other", "third"):
            connection.execute(text(f"CREATE SCHEMA {schema}"))
        connection.execute(text("CREATE VIEW other.workflow_runs AS SELECT 1 AS id"))
        assert several_tables(connection) is None
        connection.execute(text("CREATE TABLE third.workflow_runs (id text)"))
        assert several_tables(connection) == "public, third"


def test_schema_of_the_table_must_be_one_that_the_role_may_use(rolled_back: RolledBack) -> None:
    with rolled_back() as connection:
        for statement in _MOVED:
            connection.execute(text(statement))
        become_reader(connection)
        (unmet,) = unmet_to_read(connection)
        assert unmet.found == f"workflow_runs is in schema hidden, which role {READER} may not use"
