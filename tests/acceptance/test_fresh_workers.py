"""The first workers on a database that has only the API's tables."""

from __future__ import annotations

from pathlib import Path

from orcheo_dispatch.ops.sandbox.orcheo_api import OrcheoApi
from tests.support.database.databases import Database
from tests.support.database.runs import everything, one
from tests.support.orcheo.orcheo_stack import ended, stack_beside, upload

RUNS = 20
_TABLES_OF_WORKERS = ("checkpoints", "checkpoint_writes", "store", "store_migrations")


def test_two_workers_started_at_once_on_a_fresh_database_lose_no_run(
    empty_database: Database, redis_url: str, tmp_path: Path
) -> None:
    with OrcheoApi(empty_database.dsn, redis_url, tmp_path) as api:
        stack = stack_beside(api)
        with stack.command("migrate") as migrate:
            greet = upload(api, greet="greet")["greet"]
            assert migrate.exit_code() == 0
        assert _present(empty_database) == set()
        with stack.command("worker") as one_worker, stack.command("worker") as other, stack.running("dispatcher"):
            fired = api.fire_webhooks(greet, [{"name": f"Ada {number}"} for number in range(RUNS)])
            one_worker.saw("worker_started")
            other.saw("worker_started")
            assert {ended(api, run)["status"] for run in fired} == {"succeeded"}
    assert _present(empty_database) == set(_TABLES_OF_WORKERS)
    # An index made CONCURRENTLY that lost a race stays behind as invalid.
    assert one(empty_database, "SELECT count(*) AS invalid FROM pg_index WHERE NOT indisvalid")["invalid"] == 0


def _present(database: Database) -> set[str]:
    rows = everything(database, "SELECT relname FROM pg_class WHERE relname = ANY (%s)", list(_TABLES_OF_WORKERS))
    return {row["relname"] for row in rows}
