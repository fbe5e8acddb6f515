"""The function that finds where a run continues."""

from __future__ import annotations

from tests.support.database.databases import Database
from tests.support.database.runs import execute, one


def test_last_checkpoint_is_that_of_the_own_graph_of_the_run(database: Database) -> None:
    def last(run: str) -> str | None:
        found: str | None = one(database, "SELECT orcheo_dispatch.last_checkpoint(%s) AS id", run)["id"]
        return found

    assert last("a") is None
    for run, namespace, checkpoint in (
        ("a", "", "1"),
        ("a", "", "3"),
        ("a", "", "2"),
        ("a", "sub", "4"),
        ("b", "", "5"),
    ):
        execute(
            database,
            "INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, checkpoint, metadata)"
            " VALUES (%s, %s, %s, '{}', '{}')",
            *(run, namespace, checkpoint),
        )
    assert (last("a"), last("b"), last("c")) == ("3", "5", None)
    # LangGraph has not made its tables yet.
    execute(database, "DROP TABLE checkpoints")
    assert last("a") is None
