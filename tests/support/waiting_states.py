"""Runs that are resumed, retried, answered, dead or waiting, as the ledger's own statements leave them.

Each run's payload, question, answer and trace holds MARKER, as input, output, error or answer: it must be in no answer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from uuid import uuid4

from orcheo_dispatch.shared.ledger.model import ProcessKind
from orcheo_dispatch.shared.ledger.processes import Process
from orcheo_dispatch.shared.ledger.runs import Ending, Run
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.settings.policies import LostRuns
from tests.support.database.databases import Database
from tests.support.database.runs import WORKFLOW_ID, claim_all, execute, insert_runs, store_of
from tests.support.page_states import MARKER

_POLICY = {"max_attempts": 3, "initial_delay_seconds": 300, "jitter_factor": 0}
_FAILED = Ending.failed(f"no luck with {MARKER}", reason="ValueError", retry=True)
_FINAL = Ending.failed(f"no luck with {MARKER}", reason="SyntaxError")
_TRACE = """
INSERT INTO execution_history (execution_id, workflow_id, inputs, runnable_config, tags, callbacks, metadata, status,
                               started_at)
VALUES (%s, %s, %s, '{}', '[]', '[]', '{}', 'running', now())
"""
_STEP = "INSERT INTO execution_history_steps (execution_id, step_index, at, payload) VALUES (%s, %s, now(), %s)"


@dataclass(frozen=True, slots=True)
class Waiting:
    """The ids of the runs, by what they are."""

    retrying: str
    waiting: str
    answered: str
    dead: str
    resumed: str


def fill_waiting(database: Database) -> Waiting:
    """One run that is tried again, one that waits for two answers, one answered, one dead, and one resumed."""
    runs = Waiting(*insert_runs(database, 5, inputs={"secret": MARKER}))
    execute(
        database,
        "INSERT INTO retry_policies (workflow_id, config) VALUES (%s, %s)",
        WORKFLOW_ID,
        json.dumps(_POLICY),
    )
    with store_of(database) as (store, engine):
        worker = Process(ProcessKind.WORKER, host="run-1", pid=2201, concurrency=4)
        worker.seen(engine)
        claims = {claim.run_id: claim for claim in claim_all(store)}
        for claim in claims.values():
            assert isinstance(store.begin(claim, worker_id=worker.id, lease=30), Run)
        store.settle(claims[runs.retrying], _FAILED)
        store.settle(claims[runs.waiting], _asks(2))
        store.settle(claims[runs.answered], _asks(1))
        store.settle(claims[runs.dead], _FINAL)
        execute(database, "SELECT orcheo_dispatch.answer(%s, %s, 'ada')", runs.answered, json.dumps(MARKER))
        _lose(database, store, runs.resumed)
        (again,) = (claim for claim in claim_all(store) if claim.run_id == runs.resumed)
        store.mark_published([again])
        assert isinstance(store.begin(again, worker_id=uuid4(), lease=600), Run)
    _trace(database, runs.resumed)
    return runs


def _asks(interrupts: int) -> Ending:
    return Ending.waiting(json.dumps({"question": MARKER}), checkpoint_id="c", interrupts=interrupts, keeps_slot=False)


def _lose(database: Database, store: Store, run_id: str) -> None:
    execute(
        database,
        "UPDATE orcheo_dispatch.dispatch SET lease_expires_at = now() - interval '1 s' WHERE run_id = %s",
        run_id,
    )
    (reaped,) = store.reap(LostRuns.RESUME, max_attempts=5, lease=0, batch=10)
    assert reaped.claim.run_id == run_id


def _trace(database: Database, run_id: str) -> None:
    """Write what a worker's trace says of a run that was continued."""
    told = {"after_step": 3, "tasks": ["send"], "attempt": 2, "claim": 1, "reason": MARKER, "message": MARKER}
    execute(database, _TRACE, run_id, WORKFLOW_ID, json.dumps({"secret": MARKER}))
    for index, step in enumerate(({"load": {"output": MARKER}}, {"resumed": told})):
        execute(database, _STEP, run_id, index, json.dumps(step))
