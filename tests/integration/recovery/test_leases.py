"""Heartbeats: what becomes of one run, one row or the API's table costs no other run its lease."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import uuid4

import psycopg
import pytest

from orcheo_dispatch.shared.ledger.model import ProcessKind
from orcheo_dispatch.shared.ledger.processes import Process
from orcheo_dispatch.shared.ledger.runs import Run
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.metrics.model import WorkerMetrics
from orcheo_dispatch.shared.settings.policies import LostRuns
from orcheo_dispatch.worker.execution import Execution, Executions
from orcheo_dispatch.worker.heartbeat import Heartbeat
from tests.support.database.databases import Database
from tests.support.database.refusals import SLEEP, held, locked, meddle
from tests.support.database.runs import (
    all_are,
    claim_all,
    everything,
    execute,
    insert_runs,
    ledger,
    read_run,
    settings_for,
    store_of,
)
from tests.support.processes.processes import Stack, until

_LEDGER = "orcheo_dispatch.dispatch"
_BEATS = "NEW.state = 'running' AND OLD.state = 'running'"


@dataclass
class _Beating:
    store: Store
    heartbeat: Heartbeat
    executions: Executions

    def stopped(self, run_id: str) -> bool:
        """Return whether the run was told to stop."""
        return any(each.run.run_id == run_id and each.stopped_at is not None for each in self.executions)

    def reap(self) -> list[str]:
        """Return the runs that a dispatcher would reap now."""
        return [each.claim.run_id for each in self.store.reap(LostRuns.FAIL, max_attempts=3, lease=0, batch=100)]


@contextmanager
def _beating(database: Database, runs: int, *, lease: float, interval: float = 0.2) -> Iterator[_Beating]:
    """Begin runs, have a heartbeat keep their leases, and watch it as a runtime does."""
    settings = settings_for(database, heartbeat=interval, worker_lease=lease)
    process, executions = Process(ProcessKind.WORKER), Executions(runs)
    insert_runs(database, runs)
    with store_of(database) as (store, _):
        begun_at = time.monotonic()
        begun = store.begin_all(claim_all(store, runs), worker_id=process.id, lease=lease)
        made = [
            Execution(
                run,
                begun_at=begun_at,
                timeout=1.0,
                on_stop=lambda _: None,
                on_ignored=lambda _: None,
                on_end=lambda _: None,
            )
            for run in begun
            if isinstance(run, Run)
        ]
        executions.add(made, reserved=0)
        heartbeat = Heartbeat(settings, process, executions, WorkerMetrics(settings, uuid4()))
        heartbeat.start()
        yield _Beating(store, heartbeat, executions)
        executions.remove(made)
        heartbeat.stop()


def _for(beating: _Beating, seconds: float) -> list[str]:
    """Look as often as a dispatcher and a runtime do, for so long; return what was reaped meanwhile."""
    until_then, reaped = time.monotonic() + seconds, []
    while time.monotonic() < until_then:
        beating.heartbeat.stop_what_was_not_renewed()
        reaped += beating.reap()
        time.sleep(0.1)
    return reaped


@pytest.mark.parametrize(("state", "body"), [("P0001", ""), ("57014", ""), ("40001", ""), ("", SLEEP)])
def test_run_whose_heartbeat_is_refused_loses_its_own_lease_only(database: Database, state: str, body: str) -> None:
    with _beating(database, 20, lease=4) as beating:
        bad = next(iter(beating.executions)).run.run_id
        meddle(database, bad, condition=_BEATS, table=_LEDGER, state=state, body=body)
        reaped = _for(beating, 7)
        assert set(reaped) <= {bad}
        assert [each.run.run_id for each in beating.executions if beating.stopped(each.run.run_id)] == [bad]


def test_row_held_for_longer_than_the_lease_costs_no_lease(database: Database) -> None:
    with _beating(database, 10, lease=2) as beating:
        waiting = next(iter(beating.executions)).run.run_id
        with held(database, waiting, _LEDGER):
            assert _for(beating, 5) == []
        # It is let go with a lease that has expired, between two looks of the reaper.
        until(
            lambda: everything(
                database, f"SELECT FROM {_LEDGER} WHERE run_id = %s AND lease_expires_at > now()", waiting
            ),
            what="it is renewed",
            seconds=2,
        )
        assert not any(beating.stopped(each.run.run_id) for each in beating.executions)


def test_reaped_run_is_stopped_although_its_row_was_held_before(database: Database) -> None:
    with _beating(database, 3, lease=2) as beating:
        lost = next(iter(beating.executions)).run.run_id
        with held(database, lost, _LEDGER) as somebody:
            assert _for(beating, 1) == []
            somebody.execute(f"UPDATE {_LEDGER} SET fence = fence + 1 WHERE run_id = %s".encode(), (lost,))
            somebody.commit()
            until(lambda: beating.stopped(lost), what="it is stopped", seconds=3)
        assert sum(beating.stopped(each.run.run_id) for each in beating.executions) == 1


@pytest.mark.parametrize("table", ["workflow_runs", "workflows"])
def test_lock_on_the_tables_of_the_api_costs_no_lease(database: Database, table: str) -> None:
    with _beating(database, 10, lease=2) as beating, locked(database, table):
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            beating.heartbeat.stop_what_was_not_renewed()
            time.sleep(0.1)
        assert not any(beating.stopped(each.run.run_id) for each in beating.executions)
        with psycopg.connect(database.dsn, autocommit=True) as connection:
            late = connection.execute(f"SELECT count(*) FROM {_LEDGER} WHERE lease_expires_at < now()").fetchone()
        assert late == (0,)


def test_lease_that_nobody_renewed_is_given_up(database: Database) -> None:
    """The ledger itself is locked: nobody can reap either, but nobody can know that."""
    with _beating(database, 3, lease=2) as beating, locked(database, _LEDGER):
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and not beating.stopped(next(iter(beating.executions)).run.run_id):
            beating.heartbeat.stop_what_was_not_renewed()
            time.sleep(0.1)
        assert all(beating.stopped(each.run.run_id) for each in beating.executions)


def test_runs_outlast_a_lock_on_the_table_of_the_api(database: Database, stack: Stack) -> None:
    """As long as one and a half leases: an ALTER TABLE of the API's next release, a VACUUM FULL."""
    ids = insert_runs(database, 10, inputs={"do": "wait", "seconds": 2})
    with stack.running("worker", ORCHEO_WORKER_LEASE="4") as worker, stack.running("dispatcher"):
        until(lambda: len(stack.noted("begun")) == 10, what="all begin")
        with locked(database):
            time.sleep(6)
        until(lambda: all_are(database, "succeeded"), what="all succeed")
        assert "lease_not_renewed" not in worker.log
    assert {ledger(database, run_id)["attempts"] for run_id in ids} == {1}


def test_cancel_is_obeyed_while_the_row_of_another_run_is_held(database: Database, stack: Stack) -> None:
    cancelled, waiting = insert_runs(database, 2, inputs={"do": "wait", "seconds": 3600})
    with stack.running("worker"), stack.running("dispatcher"):
        until(lambda: len(stack.noted("begun")) == 2, what="both begin")
        with held(database, waiting), held(database, waiting, _LEDGER):
            execute(database, "UPDATE workflow_runs SET status = 'cancelled' WHERE id = %s", cancelled)
            until(lambda: stack.noted("cancelled") == [cancelled], what="it is stopped", seconds=10)
            until(lambda: ledger(database, cancelled)["state"] == "settled", what="it is settled", seconds=10)
        assert read_run(database, waiting)["status"] == "running"
