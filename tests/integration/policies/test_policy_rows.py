"""The rows of policies and of the log of operations: what they take, and who wrote them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from sqlalchemy import Engine

from orcheo_dispatch.ops.operating.scopes import database_now
from orcheo_dispatch.shared.errors import RefusedError
from orcheo_dispatch.shared.ledger.operators.operations import (
    Author,
    Done,
    Interface,
    list_operations,
    record_operation,
)
from orcheo_dispatch.shared.ledger.operators.policies import ALL, Policies, Scope, decided
from tests.support.database.databases import Database
from tests.support.database.runs import execute, one, store_of

ME = Author("ada", Interface.COMMAND, why="load test")


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    """Connections to the test's own database."""
    with store_of(database) as (_, engine):
        yield engine


def test_set_keeps_the_fields_that_it_does_not_name(engine: Engine) -> None:
    policies = Policies(engine)
    policies.set(Scope(workflow_id="w1"), {"max_running": 3, "paused": True}, ME)
    row = policies.set(Scope(workflow_id="w1"), {"paused": None, "queue": "gpu"}, ME)
    assert (row.max_running, row.paused, row.queue) == (3, None, "gpu")
    assert policies.get(Scope(workflow_id="w1")) == row
    assert policies.get(ALL) is None


def test_each_change_is_recorded_with_its_author(engine: Engine) -> None:
    policies = Policies(engine)
    policies.set(Scope(workspace_id="acme"), {"rate_runs": 10, "rate_seconds": 60}, ME)
    policies.set(Scope(workspace_id="acme"), {"rate_runs": 20}, Author("bob", Interface.PAGE))
    policies.clear(Scope(workspace_id="acme"), ME)
    cleared, second, first = list_operations(engine, limit=10)
    assert (first.by, first.interface, first.why, first.action) == ("ada", "command", "load test", "policy set")
    assert first.details == {"rate_runs": 10, "rate_seconds": 60}
    assert (second.by, second.interface, second.details) == ("bob", "page", {"rate_runs": 20})
    assert (cleared.action, cleared.workspace_id, cleared.why) == ("policy clear", "acme", "load test")
    assert cleared.details == {"rate_runs": 20, "rate_seconds": 60}


def test_a_change_by_hand_is_recorded_as_sql_under_the_login_name(database: Database, engine: Engine) -> None:
    execute(
        database, "INSERT INTO orcheo_dispatch.policy (workflow_id, paused, by) VALUES ('w', true, 'somebody else')"
    )
    login = one(database, "SELECT session_user::text AS login")["login"]
    (entry,) = list_operations(engine, limit=10)
    assert (entry.by, entry.interface, entry.workflow_id) == (login, "sql", "w")
    (row,) = Policies(engine).listed()
    assert row.by == login


@pytest.mark.parametrize(
    "fields",
    [
        {"priority": 6},
        {"max_running": 0},
        {"rate_runs": 5},
        {"rate_runs": 5, "rate_seconds": 0},
        {"queue": "GPU; DROP"},
        {"timeout_seconds": 0},
        {"lost_runs": "retry"},
        {"isolation": "none"},
        {"maintenance": True},
        {"paused": False, "paused_until": datetime(2030, 1, 1, tzinfo=UTC)},
    ],
)
def test_a_value_that_means_nothing_is_refused(engine: Engine, fields: dict[str, object]) -> None:
    with pytest.raises(RefusedError):
        Policies(engine).set(Scope(workflow_id="w"), fields, ME)
    assert Policies(engine).listed() == []


def test_one_row_is_about_one_scope(database: Database) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        execute(database, "INSERT INTO orcheo_dispatch.policy (workspace_id, workflow_id) VALUES ('a', 'b')")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE orcheo_dispatch.operation SET by = 'x'",
        "DELETE FROM orcheo_dispatch.operation",
        "TRUNCATE orcheo_dispatch.operation",
    ],
)
def test_the_log_of_operations_is_append_only(database: Database, engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        record_operation(connection, ME, Done("requeue", run_ids=["r1"], changed=1))
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        execute(database, statement)
    assert [entry.run_ids for entry in list_operations(engine, limit=1)] == [["r1"]]


def test_secrets_in_a_reason_are_redacted(engine: Engine) -> None:
    why = "see postgresql://ada:s3cret-password@db/orcheo"
    row = Policies(engine).set(ALL, {"maintenance": True}, Author("ada", Interface.COMMAND, why=why))
    assert row.why == "see postgresql://ada:***@db/orcheo"
    assert "s3cret" not in str(list_operations(engine, limit=10))


def test_the_most_specific_row_decides_field_by_field(engine: Engine) -> None:
    policies = Policies(engine)
    past = datetime.now(UTC) - timedelta(hours=1)
    policies.set(ALL, {"paused": True, "queue": "slow", "lost_runs": "fail"}, ME)
    policies.set(Scope(workspace_id="acme"), {"paused": False, "timeout_seconds": 60}, ME)
    policies.set(Scope(workflow_id="w"), {"paused": True, "paused_until": past, "queue": "gpu"}, ME)
    policies.set(Scope(workflow_id="other"), {"queue": "cpu"}, ME)
    found = {
        each.field: (each.value, str(each.by.scope) if each.by else None)
        for each in decided(policies.concerning("acme", "w"), database_now(engine))
    }
    assert found["paused"] == (False, "workspace acme")
    assert found["queue"] == ("gpu", "workflow w")
    assert found["timeout_seconds"] == (60, "workspace acme")
    assert found["lost_runs"] == ("fail", "all runs")
    assert found["isolation"] == (None, None)
