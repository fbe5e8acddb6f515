"""Cancel, fail, requeue or answer runs for an operator; refuse what breaks a rule of the ledger; record who did it.

Runs are changed in batches: one transaction changes a batch and appends one entry to the log of operations. No batch
waits for a lock: runs that others have locked are left out, and tried once more at the end, one by one. A run that
Postgres refuses does not stop the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine

from orcheo_dispatch.shared.database.connections import in_transaction
from orcheo_dispatch.shared.database.refused import reason_of
from orcheo_dispatch.shared.database.sifting import sieved
from orcheo_dispatch.shared.database.sqlstate import Failure, failure_of
from orcheo_dispatch.shared.errors import RowLockedError
from orcheo_dispatch.shared.ledger.operators.operations import Author, Done, record_operation
from orcheo_dispatch.shared.ledger.operators.selection import Action, Selection, pages
from orcheo_dispatch.shared.ledger.statements.repair import ANSWER, AWAIT_RUN, EXISTING_RUNS, LOCK_RUNS, REPAIR
from orcheo_dispatch.shared.ledger.store import Store

ACTOR_OPERATOR = "operator"
BATCH = 100
"""Number of runs that one transaction changes at most."""
LOCKED = "another session has locked it: try again"
_NO_RUN = "there is no such run"
_BATCH_LOCK_SECONDS = 0.2
"""How long a batch waits for a row beside its runs, such as that of a scheduled retry. The run is then left out."""
_LOCK_SECONDS = 2.0
"""How long one transaction waits for the lock of one run that was left out."""
_WAITING_SECONDS = 10.0
"""How long all of them wait together; the runs that remain are reported as locked."""
_BATCH_MILLISECONDS = 5_000
_REASONS = {
    "cancel": "Cancelled by an operator.",
    "fail": "Failed by an operator.",
    "requeue": "Requeued by an operator.",
}

type OnProgress = Callable[[Sequence[Repair]], None]
"""Called after each batch with what was done to its runs; what it raises ends the repair between two batches."""


@dataclass(frozen=True, slots=True)
class Repair:
    """What was done to one run; with `refused`, nothing was, and this is why."""

    run_id: str
    status_before: str | None
    status_after: str | None
    refused: str | None

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` prints; these names are stable."""
        return asdict(self)


def repair(
    engine: Engine,
    run_ids: Sequence[str],
    action: Action,
    author: Author,
    *,
    dry_run: bool = False,
    from_start: bool = False,
    answer: str | None = None,
    on_progress: OnProgress | None = None,
) -> list[Repair]:
    """Apply `action` to these runs and return what was done to each, in their order.

    With `dry_run` only return what would be done. With `from_start` a requeued run does not continue after its last
    stored step. `answer` is the JSON text that `Action.ANSWER` gives to each run; it is recorded nowhere else. The
    author's `why` goes into the run's error and audit log. Run slots that become due are given back by the dispatcher.
    Raises `DatabaseError`; what was done until then stays done.
    """
    given = list(dict.fromkeys(run_ids))
    work = _Work(
        engine,
        action,
        author,
        from_start=from_start,
        answer=answer,
        dry_run=dry_run,
        details={},
        report=on_progress,
    )
    done = {each.run_id: each for each in work.batches(given)}
    return [done[run_id] for run_id in given]


def repair_all(
    engine: Engine,
    selection: Selection,
    action: Action,
    author: Author,
    *,
    limit: int | None = None,
    dry_run: bool = False,
    from_start: bool = False,
    answer: str | None = None,
    on_progress: OnProgress | None = None,
) -> list[Repair]:
    """Apply `action` to all runs of a selection, at most `limit`, and return what was done to each.

    Several operators may do so at once: each run is changed once. Otherwise as `repair`.
    """
    chosen = selection.of(action)
    work = _Work(
        engine,
        action,
        author,
        from_start=from_start,
        answer=answer,
        dry_run=dry_run,
        details=chosen.as_details(),
        report=on_progress,
    )
    return list(work.batches(pages(engine, chosen, limit)))


@dataclass(slots=True)
class _Work:
    engine: Engine
    action: Action
    author: Author
    from_start: bool
    answer: str | None
    dry_run: bool
    details: Mapping[str, Any]
    report: OnProgress | None
    _left_out: list[str] = field(default_factory=list)

    def batches(self, run_ids: Sequence[str] | Iterator[str]) -> Iterator[Repair]:
        """Yield what was done to each run; those that are locked come last."""
        batch: list[str] = []
        for run_id in run_ids:
            batch.append(run_id)
            if len(batch) == BATCH:
                yield from self._batch(batch)
                batch = []
        if batch:
            yield from self._batch(batch)
        yield from self._wait_for_left_out()

    def _batch(self, run_ids: Sequence[str]) -> list[Repair]:
        def change(connection: Connection) -> list[Repair]:
            if self.dry_run:
                existing, done = self._existing(connection, run_ids), self._act(connection, run_ids)
                return [*done, *self._unknown(run_ids, existing)]
            return self._change(connection, run_ids, lambda: self._locked(connection, run_ids))

        done = in_transaction(
            self.engine,
            change,
            timeout_milliseconds=_BATCH_MILLISECONDS,
            lock_timeout=_BATCH_LOCK_SECONDS,
            many_rows=True,
        )
        seen = {each.run_id for each in done}
        self._left_out += [run_id for run_id in run_ids if run_id not in seen]
        return self._ended(done)

    def _change(self, connection: Connection, run_ids: Sequence[str], lock: Callable[[], list[str]]) -> list[Repair]:
        """Change those runs that `lock` locks, and record it; runs that are locked by others are not in the answer."""
        workflows: set[str] = set()
        workspaces: set[str | None] = set()

        def act(inner: Connection, part: Sequence[str]) -> list[Repair]:
            return self._act(inner, part, workflows, workspaces)

        sieve = sieved(connection, lambda _connection, _skipped: lock(), act)
        done = [
            *sieve.changed,
            *(
                Repair(run_id, None, None, f"Postgres refuses it: {reason_of(error)}")
                for run_id, error in sieve.refused.items()
                if failure_of(error) is not Failure.LOCKED
            ),
            *self._unknown(run_ids, self._existing(connection, run_ids)),
        ]
        if done:
            changed = [each.run_id for each in done if not each.refused]
            record_operation(
                connection,
                self.author,
                Done(
                    self.action.value,
                    run_ids=changed,
                    changed=len(changed),
                    refused=len(done) - len(changed),
                    workflow_id=workflows.pop() if len(workflows) == 1 else None,
                    workspace_id=workspaces.pop() if len(workspaces) == 1 else None,
                    details={**self.details, **({"from_start": True} if self.from_start else {})},
                ),
            )
        return done

    def _act(
        self,
        connection: Connection,
        run_ids: Sequence[str],
        workflows: set[str] | None = None,
        workspaces: set[str | None] | None = None,
    ) -> list[Repair]:
        common = {"run_ids": list(run_ids), "actor": ACTOR_OPERATOR, "dry_run": self.dry_run}
        if self.action is Action.ANSWER:
            rows = connection.execute(ANSWER, {**common, "answer": self.answer}).all()
        else:
            reason = self.author.why or _REASONS[self.action.value]
            more = {"action": self.action.value, "reason": reason, "from_start": self.from_start}
            rows = connection.execute(REPAIR, {**common, **more}).all()
        if workflows is not None and workspaces is not None:
            workflows.update(row.workflow_id for row in rows)
            workspaces.update(row.workspace_id for row in rows)
        return [
            Repair(row.run_id, row.status_before, row.status_before if row.refused else row.status_after, row.refused)
            for row in rows
        ]

    def _wait_for_left_out(self) -> Iterator[Repair]:
        """Change the runs that were left out, one by one, and report those that stay locked."""
        ends_at = time.monotonic() + _WAITING_SECONDS
        still: list[str] = []
        for run_id in self._left_out:
            left = ends_at - time.monotonic()
            done = self._one(run_id, min(left, _LOCK_SECONDS)) if left > 0.001 else []
            still += [] if done else [run_id]
            yield from done
        if not still:
            return
        refused = [Repair(run_id, None, None, LOCKED) for run_id in still]
        entry = Done(self.action.value, refused=len(still), details=dict(self.details))
        in_transaction(self.engine, lambda connection: record_operation(connection, self.author, entry))
        yield from self._ended(refused)

    def _one(self, run_id: str, lock_timeout: float) -> list[Repair]:
        """Change one run, or return nothing if it stays locked for so long."""

        def change(connection: Connection) -> list[Repair]:
            connection.execute(AWAIT_RUN, {"run_id": run_id})
            return self._change(connection, [run_id], lambda: [run_id])

        try:
            return self._ended(
                in_transaction(self.engine, change, timeout_milliseconds=_BATCH_MILLISECONDS, lock_timeout=lock_timeout)
            )
        except RowLockedError:
            return []

    def _ended(self, done: list[Repair]) -> list[Repair]:
        changed = [each.run_id for each in done if not each.refused]
        if changed and self.action is Action.FAIL and not self.dry_run:
            Store(self.engine).close_traces(changed)
        if done and self.report is not None:
            self.report(done)
        return done

    @staticmethod
    def _locked(connection: Connection, run_ids: Sequence[str]) -> list[str]:
        return [row.run_id for row in connection.execute(LOCK_RUNS, {"run_ids": list(run_ids)})]

    @staticmethod
    def _existing(connection: Connection, run_ids: Sequence[str]) -> set[str]:
        return {row.run_id for row in connection.execute(EXISTING_RUNS, {"run_ids": list(run_ids)})}

    @staticmethod
    def _unknown(run_ids: Sequence[str], existing: set[str]) -> list[Repair]:
        return [Repair(run_id, None, None, _NO_RUN) for run_id in run_ids if run_id not in existing]
