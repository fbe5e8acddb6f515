"""Answer a run that stopped at an interrupt, to wait for a person."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, text

from orcheo_dispatch.ops.runs.repair import ACTOR_OPERATOR
from orcheo_dispatch.shared.database.connections import in_transaction
from orcheo_dispatch.shared.errors import DatabaseError, DispatchError

_ANSWER = text("SELECT orcheo_dispatch.answer(:run_id, CAST(:answer AS jsonb), :by)")
_REFUSED = {"55000", "22023"}
"""SQLSTATEs that the function raises: the run does not wait, or the answer lacks the ids of interrupts."""


def answer_run(engine: Engine, run_id: str, answer: str) -> None:
    """Have the run continue with this answer, a JSON text. Raises `DispatchError` if the run does not wait for one."""

    def execute(connection: Connection) -> None:
        connection.execute(_ANSWER, {"run_id": run_id, "answer": answer, "by": ACTOR_OPERATOR})

    try:
        in_transaction(engine, execute)
    except DatabaseError as error:
        if error.sqlstate in _REFUSED:
            raise DispatchError(
                f"run {run_id} does not wait for this answer: see 'orcheo-dispatch runs --waiting'; if it waits for "
                "several, the answer is an object with the id of each interrupt as key"
            ) from None
        raise
