"""Read and write Orcheo's tables in the main process, for the executor in the runners."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import UUID

import msgspec

from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.ledger.runs import Run
from orcheo_dispatch.shared.settings.policies import LostRuns
from orcheo_dispatch.worker.books.foreign import refusal_of
from orcheo_dispatch.worker.books.group_commit import GroupCommit
from orcheo_dispatch.worker.books.postgres import Pool, make_pool, open_pool
from orcheo_dispatch.worker.books.rows import Rows
from orcheo_dispatch.worker.books.units import Unit
from orcheo_dispatch.worker.books.workflows import Provided, Workflows

_CONNECTIONS = 3
"""At most one statement reads and one writes at a time."""


class Books:
    """Read the workflows of all runs of a worker, and write the traces and checkpoints of these runs.

    For one event loop: the one that `open` is called on. `running` returns the number of runs in progress.
    """

    def __init__(
        self,
        dsn: str,
        *,
        running: Callable[[], int],
        worker_id: UUID | None = None,
        lost_runs: LostRuns = LostRuns.FAIL,
        waits: bool = False,
    ) -> None:
        """Each write is guarded by the fence of its run and by `worker_id`; without the latter it is not.

        `lost_runs` is the rule of runs for which operators decided nothing: under `resume`, a run continues after its
        last finished step. With `waits`, runs that stop at an interrupt wait for an answer.
        """
        self._guarded = worker_id is not None
        self._lost_runs = lost_runs
        self._pool = make_pool(Pool, dsn, name="orcheo-dispatch worker", min_size=1, max_size=_CONNECTIONS)
        self._workflows = Workflows(self._pool, rule=self._rule, waits=waits)
        self._commit = GroupCommit(self._pool, running=running, worker_id=worker_id)
        self._unwritten: dict[Claim, set[_Given]] = {}

    async def open(self) -> None:
        """Connect. Raises `DatabaseError` if Postgres cannot be reached."""
        await open_pool(self._pool)

    async def close(self) -> None:
        """Write all queued rows, then disconnect."""
        await self._commit.close()
        await self._pool.close()

    async def provide(self, run: Run, known_at: str | None) -> Provided:
        """Return what `run` executes; see `Workflows.provide`."""
        return await self._workflows.provide(run, known_at)

    def resumes(self, run: Run) -> bool:
        """Return whether a run that is lost continues after its last finished step."""
        return self._rule(run) is LostRuns.RESUME

    def write(self, run: Claim, rows: Rows, *, hasten: bool, resumes: bool = True) -> asyncio.Future[str | None]:
        """Write rows of this run together, or none of them; soon, or as soon as possible if `hasten` is set.

        A run that `resumes` gets its attempts back with each step that it has finished.

        The future's result is None when they are written or were abandoned, or else says why they are not written: the
        class of Postgres' error, `StaleFenceError` if this worker does not hold the run, or `ForeignRows` or
        `MalformedRows` for rows that no executor sends.
        """
        answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        refusal = refusal_of(rows, run.run_id)
        if refusal is not None:
            answer.set_result(refusal)
            return answer
        if self._guarded:
            rows.claims = {run.run_id: run.fence}
            rows.progressed = {run.run_id} if resumes and _has_finished_a_step(rows) else set()
        unit = _Given(run.run_id, rows)
        self._unwritten.setdefault(run, set()).add(unit)

        def written(outcome: asyncio.Future[Exception | None]) -> None:
            waiting = self._unwritten[run]
            waiting.discard(unit)
            if not waiting:
                del self._unwritten[run]
            error = outcome.result()
            if not answer.done():
                answer.set_result(type(error).__name__ if error is not None else None)

        unit.written.add_done_callback(written)
        self._commit.add(unit)
        if hasten:
            self._commit.hasten()
        return answer

    @property
    def makes_progress(self) -> bool:
        """Whether statements begin while rows wait. May be read from any thread."""
        return self._commit.makes_progress

    def hasten(self) -> None:
        """Write all rows given so far as soon as possible."""
        self._commit.hasten()

    def abandon(self, run: Claim) -> None:
        """Write no more rows of this run, except those being written already: its fence is lost."""
        for unit in tuple(self._unwritten.get(run, ())):
            self._commit.drop(unit)

    def _rule(self, run: Run) -> LostRuns:
        """Return what happens to a run if its worker is lost."""
        return run.rules.lost_runs or self._lost_runs


class _Metadata(msgspec.Struct):
    step: int = -1


class _Row(msgspec.Struct):
    metadata: _Metadata


def _has_finished_a_step(rows: Rows) -> bool:
    """Return whether the rows include a checkpoint made by a step; those of the steps -1 and 0 hold the inputs."""
    for row in rows.texts.get("checkpoints", ()):
        try:
            if msgspec.json.decode(row, type=_Row).metadata.step > 0:
                return True
        except msgspec.MsgspecError:
            # Not a checkpoint of LangGraph: it proves no progress.
            continue
    return False


class _Given(Unit):
    """Rows that a runner has sent."""

    def __init__(self, run_id: str, rows: Rows) -> None:
        super().__init__(run_id)
        self._rows = rows

    def rows(self) -> Rows:
        """Return the rows."""
        return self._rows
