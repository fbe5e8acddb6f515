"""Isolate a workflow for an operator, or end that, and record who did it."""

from __future__ import annotations

from sqlalchemy import Connection, Engine

from orcheo_dispatch.shared.database.connections import in_transaction
from orcheo_dispatch.shared.ledger.operators.operations import Author, Done, record_operation
from orcheo_dispatch.shared.ledger.statements.isolate import CLEAR_ISOLATION, ISOLATE

_LOCK_SECONDS = 1.0
_ALL_VERSIONS = ""
_NO_REASON = "by an operator"


def isolate_workflow(engine: Engine, workflow_id: str, author: Author, *, seconds: float | None) -> None:
    """Have all versions of a workflow executed in dedicated runners for `seconds`, or until that is cleared.

    Raises `DatabaseError`.
    """

    def change(connection: Connection) -> None:
        decision = {"workflow_id": workflow_id, "version_id": _ALL_VERSIONS, "seconds": seconds}
        connection.execute(ISOLATE, {**decision, "reason": author.why or _NO_REASON, "by": author.by})
        details = {} if seconds is None else {"seconds": seconds}
        record_operation(connection, author, Done("isolate", changed=1, workflow_id=workflow_id, details=details))

    in_transaction(engine, change, lock_timeout=_LOCK_SECONDS)


def clear_isolation(engine: Engine, workflow_id: str, author: Author) -> int:
    """Have a workflow and all its versions share processes again; return how many isolations were cleared.

    Raises `DatabaseError`.
    """

    def change(connection: Connection) -> int:
        cleared = connection.execute(CLEAR_ISOLATION, {"workflow_id": workflow_id, "version_id": None}).all()
        record_operation(connection, author, Done("isolate clear", changed=len(cleared), workflow_id=workflow_id))
        return len(cleared)

    return in_transaction(engine, change, lock_timeout=_LOCK_SECONDS)
