"""What a role may read is found out before it is read: without one of the rights, or relations, nothing is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Connection, TextClause, text

from orcheo_dispatch.shared.ledger.operators.waits import may_see_waits
from orcheo_dispatch.shared.ledger.overview import MAY_NAME, MAY_SEE_OPERATORS
from orcheo_dispatch.shared.ledger.statements.waits import MAY_SEE_WAITING
from orcheo_dispatch.shared.ledger.status import MAY_SEE_ISOLATED, MAY_SEE_OTHERS, MAY_SEE_POLICIES
from orcheo_dispatch.shared.ledger.story import MAY_READ_TRACE
from tests.support.database.comparing import RolledBack
from tests.support.database.rows import become_reader

type Question = Callable[[Connection], object]


def _asked(statement: TextClause) -> Question:
    return lambda connection: connection.scalar(statement)


_NEEDS: list[tuple[Question, list[str]]] = [
    (may_see_waits, ["orcheo_dispatch.held_back_runs", "orcheo_dispatch.policies"]),
    (_asked(MAY_SEE_OPERATORS), ["orcheo_dispatch.policies", "orcheo_dispatch.operations"]),
    (_asked(MAY_SEE_OTHERS), ["orcheo_dispatch.unclaimed_runs", "orcheo_dispatch.begun_elsewhere"]),
    (_asked(MAY_SEE_ISOLATED), ["orcheo_dispatch.isolated_workflows"]),
    (_asked(MAY_SEE_POLICIES), ["orcheo_dispatch.policy"]),
    (_asked(MAY_READ_TRACE), ["execution_history_steps"]),
    (
        _asked(MAY_SEE_WAITING),
        [f"orcheo_dispatch.{name}" for name in ("retry", "question", "retrying_runs", "waiting_runs")],
    ),
]


@pytest.mark.parametrize(
    ("question", "relations", "lacking"),
    [(question, relations, lacking) for question, relations in _NEEDS for lacking in (None, *relations)],
)
def test_all_rights_are_needed(
    rolled_back: RolledBack, question: Question, relations: list[str], lacking: str | None
) -> None:
    with rolled_back() as connection:
        become_reader(connection, *(f"ON {each}" for each in relations if each != lacking))
        assert question(connection) is (lacking is None)


@pytest.mark.parametrize(
    ("question", "missing"), [(question, missing) for question, relations in _NEEDS for missing in relations]
)
def test_relation_that_is_missing_is_not_read(rolled_back: RolledBack, question: Question, missing: str) -> None:
    with rolled_back() as connection:
        connection.execute(text(f"ALTER TABLE {missing} RENAME TO gone"))
        assert not question(connection)


@pytest.mark.parametrize("columns", ["", "id", "handle", "payload", "id, handle", "id, payload", "id, handle, payload"])
def test_workflows_are_named_by_what_the_role_may_read(rolled_back: RolledBack, columns: str) -> None:
    with rolled_back() as connection:
        become_reader(connection, *([f"({columns}) ON workflows"] if columns else []))
        may = connection.execute(MAY_NAME).one()
        assert (may.handle, may.name) == ("id, handle" in columns, "payload" in columns)


def test_workflows_are_not_named_where_there_is_no_such_table(rolled_back: RolledBack) -> None:
    with rolled_back() as connection:
        connection.execute(text("ALTER TABLE workflows RENAME TO gone"))
        may = connection.execute(MAY_NAME).one()
        assert not may.handle
        assert not may.name
