"""A settler in the test's own process, and runs that have begun and end when the test says so."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import event

from orcheo_dispatch.shared.database.connections import open_engine
from orcheo_dispatch.shared.ledger.runs import Ending, Run
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.metrics.model import WorkerMetrics
from orcheo_dispatch.worker.execution import Execution
from orcheo_dispatch.worker.settle.ends import End
from orcheo_dispatch.worker.settle.settle import Settler
from tests.support.database.databases import Database
from tests.support.database.runs import claim_all, insert_runs, settings_for


@dataclass
class Settling:
    """What became of the runs so far."""

    database: Database
    store: Store
    worker_id: UUID
    statements: list[str] = field(default_factory=list)
    """Every SETTLE, those that failed included."""
    failed: list[str] = field(default_factory=list)
    """The errors of statements that failed."""
    finished: dict[str, End] = field(default_factory=dict)
    finished_at: dict[str, float] = field(default_factory=dict)
    abandoned: list[str] = field(default_factory=list)
    ending_of: Callable[[Execution], Ending] = lambda _: Ending.succeeded('{"final_state": {}}')
    fault: BaseException | None = None
    """What `finish` fails with."""
    settler: Settler = field(init=False)

    def begin(self, count: int = 1, **overrides: Any) -> list[Run]:
        """Insert, claim and begin so many runs."""
        insert_runs(self.database, count, **overrides)
        claims = claim_all(self.store, count)
        begun = self.store.begin_all(claims, worker_id=self.worker_id, lease=300)
        runs = [run for run in begun if isinstance(run, Run)]
        assert len(runs) == count
        return runs

    def end(self, *runs: Run) -> None:
        """Have these runs settled, together where the settler is not at work already."""
        for run in runs:
            self.settler.put(
                Execution(
                    run,
                    begun_at=0.0,
                    timeout=1.0,
                    on_stop=lambda _: None,
                    on_ignored=lambda _: None,
                    on_end=self.settler.put,
                )
            )

    def ending(self, execution: Execution) -> Ending:
        """Return how a run ends."""
        return self.ending_of(execution)

    def finish(self, ends: list[End]) -> None:
        """Take note of what is settled, or fail as the test says."""
        if self.fault is not None:
            raise self.fault
        for end in ends:
            self.finished[end.execution.run.run_id] = end
            self.finished_at[end.execution.run.run_id] = time.monotonic()

    def abandon(self, executions: list[Execution]) -> None:
        """Take note of what is abandoned."""
        self.abandoned.extend(execution.run.run_id for execution in executions)

    def are_settled(self, runs: list[Run]) -> bool:
        """Return whether all of these are settled."""
        return {run.run_id for run in runs} <= set(self.finished)


@contextmanager
def settling(database: Database) -> Iterator[Settling]:
    """Yield a settler that is started, and stop it at the end if nothing is left."""
    settings, worker_id = settings_for(database), uuid4()
    metrics = WorkerMetrics(settings, worker_id)
    with open_engine(settings, role="test", connections=6) as engine:
        made = Settling(database, Store(engine, worker_id=worker_id), worker_id)

        @event.listens_for(engine, "before_cursor_execute")
        def note(*arguments: Any) -> None:
            if "ending AS MATERIALIZED" in arguments[2]:
                made.statements.append(arguments[2])

        @event.listens_for(engine, "handle_error")
        def note_error(context: Any) -> None:
            made.failed.append(type(context.original_exception).__name__)

        made.settler = Settler(
            made.store,
            metrics,
            ending_of=made.ending,
            finish=made.finish,
            abandon=made.abandon,
        )
        made.settler.start()
        yield made
        made.settler.stop()
