"""The README's rights of a dispatcher are enough, and hold it to what they say."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psycopg
import pytest

from shared.errors import SchemaError
from shared.settings import LostRuns
from shared.store import Run
from tests.databases import Database
from tests.runs import claim_all, everything, execute, insert_runs, ledger, read_run, store_of

_GRANTS = (
    "GRANT SELECT, UPDATE (status, payload, updated_at) ON workflow_runs TO {role}",
    "GRANT USAGE ON SCHEMA orcheo_dispatch TO {role}",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA orcheo_dispatch TO {role}",
    "GRANT SELECT, UPDATE ON execution_history TO {role}",
    "GRANT SELECT, INSERT ON execution_history_steps TO {role}",
)


@pytest.fixture
def dispatcher_role(database: Database) -> Iterator[Database]:
    """The same database, as a role that may do no more than the README says."""
    role, password = f"dispatcher_{secrets.token_hex(4)}", secrets.token_hex(8)
    execute(database, f"CREATE ROLE {role} LOGIN PASSWORD '{password}'")
    for grant in _GRANTS:
        execute(database, grant.format(role=role))
    parts = urlsplit(database.dsn)
    dsn = urlunsplit(parts._replace(netloc=f"{role}:{password}@{parts.hostname}:{parts.port}"))
    yield Database(database.name, dsn)
    execute(database, f"DROP OWNED BY {role}")
    execute(database, f"DROP ROLE {role}")


def test_dispatcher_can_do_its_work_with_the_rights_of_the_readme(
    database: Database, dispatcher_role: Database
) -> None:
    first, second = insert_runs(database, 2)
    with store_of(dispatcher_role) as (store, _):
        claims = {claim.run_id: claim for claim in claim_all(store)}
        store.mark_published(claims.values(), lease=60)
        store.release([claims[second]], reason="test")
        assert isinstance(store.begin(claims[first], worker_id=uuid4(), lease=30), Run)
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
        store.reap_orphans()
        store.prune(retention=60, batch=10)
        store.adopt_cancelled(
            triggers=["webhook"], every_trigger=False, younger_than=60, dispatcher_id=uuid4(), batch=10
        )
    assert read_run(database, first)["status"] == "failed"
    assert ledger(database, second)["outcome"] == "released"


def test_dispatcher_cannot_touch_more_than_that(database: Database, dispatcher_role: Database) -> None:
    insert_runs(database)
    for forbidden in (
        "DELETE FROM workflow_runs",
        "UPDATE workflow_runs SET workflow_id = 'x'",
        "SELECT * FROM workflow_versions",
        "DROP TABLE orcheo_dispatch.dispatch",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            execute(dispatcher_role, forbidden)
    assert len(everything(database, "SELECT FROM workflow_runs")) == 1


def test_missing_rights_are_one_line(database: Database, dispatcher_role: Database) -> None:
    execute(database, f"REVOKE SELECT ON workflow_runs FROM {urlsplit(dispatcher_role.dsn).username}")
    with store_of(dispatcher_role) as (store, _), pytest.raises(SchemaError, match="permission denied") as raised:
        claim_all(store)
    assert "\n" not in str(raised.value)
