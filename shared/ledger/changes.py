"""Execute statements on the ledger, each in one short transaction, skipping rows that Postgres refused before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, TextClause

from orcheo_dispatch.shared.database.connections import in_transaction
from orcheo_dispatch.shared.database.refused import Refused
from orcheo_dispatch.shared.database.session import STATEMENT_TIMEOUT_MILLISECONDS
from orcheo_dispatch.shared.database.sifting import Change, sift
from orcheo_dispatch.shared.ledger.model import Claim

_MANY_ROWS = 32
"""Number of rows from which a custom plan is worth its planning time of some milliseconds."""


class Changes:
    """Executes statements; skips runs for which Postgres recently refused the change."""

    def __init__(
        self,
        engine: Engine,
        *,
        worker_id: UUID | None = None,
        refused: Refused | None = None,
        lock_timeout: float | None = None,
    ) -> None:
        """With `worker_id`, `heartbeat` and `settle` touch only the runs of this worker, whatever their fences.

        `refused` remembers which runs Postgres refused to claim, release, reap and so on. `lock_timeout` is the default
        time that a statement waits for a lock (seconds); callers of a method may override it.
        """
        self._engine = engine
        self._refused = refused or Refused()
        self._lock_timeout = lock_timeout
        self._worker_id = str(worker_id) if worker_id else None

    def _sifted(self, step: str, change: TextClause, /, **parameters: Any) -> Sequence[Any]:
        """Execute a change that chooses its rows itself, for all rows but those that Postgres refuses."""

        def execute(connection: Connection, **what: Any) -> Sequence[Any]:
            return connection.execute(change, {**parameters, **what}).all()

        def at_once(connection: Connection, skipped: list[str]) -> Sequence[Any]:
            return execute(connection, skipped=skipped, chosen=None, choose=False)

        def choose(connection: Connection, skipped: list[str]) -> list[str]:
            return [row.run_id for row in execute(connection, skipped=skipped, chosen=None, choose=True)]

        def act(connection: Connection, run_ids: Sequence[str]) -> Sequence[Any]:
            return execute(connection, skipped=[], chosen=list(run_ids), choose=False)

        return self._sift(Change(step, at_once, choose, act))

    def _sifted_claims(
        self, step: str, change: TextClause, claims: Iterable[Claim], /, **parameters: Any
    ) -> Sequence[Any]:
        """Execute a change for these claims, except those for which Postgres refuses it."""
        given = {claim.run_id: claim for claim in sorted(claims)}

        def act(connection: Connection, run_ids: Sequence[str]) -> Sequence[Any]:
            given_arrays = arrays(given[run_id] for run_id in run_ids)
            return connection.execute(change, {**parameters, **given_arrays}).all()

        run_ids = list(given)
        return self._sift(
            Change(step, lambda connection, _skipped: act(connection, run_ids), lambda _c, _skipped: run_ids, act),
            rows=len(run_ids),
        )

    def _sift(self, change: Change, *, rows: int = 0) -> Sequence[Any]:
        many_rows = rows >= _MANY_ROWS
        return sift(self._engine, self._refused, change, lock_timeout=self._lock_timeout, many_rows=many_rows)

    def _rows(
        self, statement: Any, lock_timeout: float | None = None, timeout: float | None = None, /, **parameters: Any
    ) -> Sequence[Any]:
        many_rows = len(parameters.get("run_ids", ())) >= _MANY_ROWS

        def execute(connection: Connection) -> Sequence[Any]:
            result = connection.execute(statement, parameters)
            return result.all() if result.returns_rows else ()

        return in_transaction(
            self._engine,
            execute,
            timeout_milliseconds=STATEMENT_TIMEOUT_MILLISECONDS if timeout is None else max(1, int(timeout * 1000)),
            lock_timeout=self._lock_timeout if lock_timeout is None else lock_timeout,
            many_rows=many_rows,
        )


def arrays(claims: Iterable[Claim]) -> dict[str, list[Any]]:
    """Return these claims as the arrays that statements expect, ordered by run."""
    ordered = sorted(claims)
    return {"run_ids": [claim.run_id for claim in ordered], "fences": [claim.fence for claim in ordered]}
