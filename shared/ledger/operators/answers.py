"""Answer a run that stopped at an interrupt, to wait for a person."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, text

from orcheo_dispatch.shared.database.connections import in_transaction
from orcheo_dispatch.shared.errors import DatabaseError, DispatchError
from orcheo_dispatch.shared.ledger.operators.operations import Author, Done, record_operation
from orcheo_dispatch.shared.ledger.operators.repairs import ACTOR_OPERATOR

_ANSWER = text("SELECT orcheo_dispatch.answer(:run_id, CAST(:answer AS jsonb), :by)")
_SCOPE = text("SELECT r.workflow_id, r.workspace_id FROM workflow_runs AS r WHERE r.id = :run_id")
_REFUSED = {"55000", "22023"}
"""SQLSTATEs that the function raises: the run does not wait, or the answer lacks the ids of interrupts."""


def answer_run(engine: Engine, run_id: str, answer: str, author: Author) -> None:
    """Have the run continue with this answer, a JSON text, and record who gave it, never the answer.

    Raises `DispatchError` if the run does not wait for one.
    """

    def execute(connection: Connection) -> None:
        connection.execute(_ANSWER, {"run_id": run_id, "answer": answer, "by": ACTOR_OPERATOR})
        scope = connection.execute(_SCOPE, {"run_id": run_id}).one()
        entry = Done(
            "answer", run_ids=[run_id], changed=1, workflow_id=scope.workflow_id, workspace_id=scope.workspace_id
        )
        record_operation(connection, author, entry)

    try:
        in_transaction(engine, execute)
    except DatabaseError as error:
        if error.sqlstate in _REFUSED:
            raise DispatchError(
                f"run {run_id} does not wait for this answer: see 'orcheo-dispatch runs --waiting'; if it waits for "
                "several, the answer is an object with the id of each interrupt as key"
            ) from None
        raise
