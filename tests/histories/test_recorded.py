"""The calls of the product on a real database are recorded, and their history is judged."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from orcheo_dispatch.shared.database.connections import open_engine
from orcheo_dispatch.shared.errors import DatabaseError
from orcheo_dispatch.shared.ledger.changes import Changes
from orcheo_dispatch.shared.ledger.recovery import Recovering
from orcheo_dispatch.shared.ledger.runs import Ending, Run
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.settings.policies import LostRuns
from orcheo_dispatch.worker.books import group_commit
from tests.faults import history
from tests.faults.evidence import read_operations, read_tables
from tests.histories.operations import Lost, Operation, Verb
from tests.histories.reading import read_calls
from tests.histories.recorder import Recorder
from tests.histories.search import check
from tests.histories.wrapped import wrap
from tests.support.database.databases import Database
from tests.support.database.runs import claim_all, execute, insert_runs, settings_for

RUNS = 8
ANN, BEN = UUID(int=1), UUID(int=2)


@dataclass
class Scene:
    """Runs in a database, and two workers whose calls are recorded."""

    database: Database
    calls: Path
    run_ids: list[str]
    ann: Store
    ben: Store

    def operations(self) -> dict[str, list[Operation]]:
        """Return the operations on each run."""
        runs, ledger, _ = read_tables(self.database.dsn)
        return read_operations(self.calls, runs, ledger)

    def illegal(self) -> list[str]:
        """Return the runs whose histories are not legal."""
        return [run_id for run_id, operations in self.operations().items() if check(operations) is not None]


@pytest.fixture
def scene(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    for owner, name in (
        (Changes, "_rows"),
        (Changes, "_sifted"),
        (Changes, "_sifted_claims"),
        (Recovering, "slots_returned"),
        (Store, "claim"),
        (group_commit, "_execute_within"),
    ):
        # Restored after the test.
        monkeypatch.setattr(owner, name, getattr(owner, name))
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        history.install(connection)
    calls = tmp_path / "calls.jsonl"
    recorder = Recorder(calls, "test")
    wrap(recorder)
    run_ids = insert_runs(database, RUNS)
    for run_id in run_ids:
        with recorder.call(Verb.CREATE, [(run_id,)]) as call:
            call.answer = True
    with open_engine(settings_for(database), role="test", connections=6) as engine:
        yield Scene(database, calls, run_ids, Store(engine, worker_id=ANN), Store(engine, worker_id=BEN))
    recorder.close()


def test_whole_life_of_runs_is_recorded_and_legal(scene: Scene) -> None:
    claims = claim_all(scene.ann)
    scene.ann.mark_published(claims)
    first, second, *others = claims
    scene.ann.release([first], reason="test")
    assert all(isinstance(each, Run) for each in scene.ann.begin_all([second, *others], worker_id=ANN, lease=60))
    assert scene.ann.begun_by(ANN, [second], lease=60)
    scene.ann.heartbeat([second, *others], lease=60)
    scene.ann.settle(second, Ending.requeued("later"))
    scene.ann.settle_all({claim: Ending.succeeded("{}") for claim in others})
    scene.ann.slots_returned([claim.run_id for claim in others])
    assert scene.illegal() == []
    told = {each.verb for operations in scene.operations().values() for each in operations}
    assert told >= {Verb.CLAIM, Verb.RELEASE, Verb.BEGIN, Verb.RECOVER, Verb.HEARTBEAT, Verb.SETTLE, Verb.RETURN_SLOT}


def test_workers_that_race_for_each_run_leave_a_legal_history(scene: Scene) -> None:
    claims = claim_all(scene.ann)

    def work(store: Store, worker_id: UUID) -> None:
        for claim in claims:
            store.begin(claim, worker_id=worker_id, lease=60)
            store.heartbeat([claim], lease=60)
            store.settle(claim, Ending.succeeded("{}"))

    with ThreadPoolExecutor(4) as threads:
        for store, worker_id in ((scene.ann, ANN), (scene.ben, BEN)) * 2:
            threads.submit(work, store, worker_id)
    assert scene.illegal() == []
    assert sum(each.verb is Verb.BEGIN for each in scene.operations()[scene.run_ids[0]]) == 4


def test_lost_run_that_is_reaped_is_legal(scene: Scene) -> None:
    claims = claim_all(scene.ann)
    scene.ann.begin_all(claims, worker_id=ANN, lease=0.1)
    time.sleep(0.2)
    assert len(scene.ben.reap(LostRuns.REQUEUE, max_attempts=2, lease=0, batch=100)) == RUNS
    again = claim_all(scene.ben)
    scene.ben.begin_all(again, worker_id=BEN, lease=60)
    assert scene.ann.settle(claims[0], Ending.succeeded("{}")) is None
    assert scene.ben.settle(again[0], Ending.succeeded("{}"))
    assert scene.illegal() == []


def test_worker_that_holds_nothing_is_answered_legally(scene: Scene) -> None:
    claims = claim_all(scene.ann)
    scene.ann.begin_all(claims, worker_id=ANN, lease=60)
    scene.ben.heartbeat(claims, lease=60)
    scene.ben.settle_all({claim: Ending.succeeded("{}") for claim in claims})
    assert scene.illegal() == []


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE workflow_runs SET status = 'failed' WHERE id = %s",
        "UPDATE orcheo_dispatch.dispatch SET fence = fence + 1 WHERE run_id = %s",
        "UPDATE orcheo_dispatch.dispatch SET attempts = 2 WHERE run_id = %s",
        "UPDATE orcheo_dispatch.dispatch SET slot = 'returned' WHERE run_id = %s",
        "UPDATE orcheo_dispatch.dispatch SET outcome = 'failed' WHERE run_id = %s",
    ],
)
def test_change_that_no_recorded_call_made_is_found(scene: Scene, change: str) -> None:
    claims = claim_all(scene.ann)
    scene.ann.begin_all(claims, worker_id=ANN, lease=60)
    scene.ann.settle_all({claim: Ending.succeeded("{}") for claim in claims})
    execute(scene.database, change, scene.run_ids[0])
    assert scene.illegal() == [scene.run_ids[0]]


def test_call_that_postgres_refused_is_left_out(scene: Scene) -> None:
    claims = claim_all(scene.ann)
    with pytest.raises(DatabaseError):
        scene.ann.settle_all({claims[0]: Ending.succeeded("no JSON")})
    assert Verb.SETTLE not in {each.verb for each in scene.operations()[claims[0].run_id]}


def test_call_without_an_answer_is_lost(tmp_path: Path) -> None:
    calls = tmp_path / "calls.jsonl"
    lines = [
        {"by": "worker-1", "n": 0, "at": 1.0, "verb": "begin", "asked": [["r", 7]], "worker_id": "w", "lease": 4},
        {"by": "worker-2", "n": 0, "at": 2.0, "verb": "begin", "asked": [["r", 7]], "worker_id": "v", "lease": 4},
        {"by": "worker-2", "n": 0, "at": 3.0, "answer": []},
    ]
    calls.write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"by": "worker-3", "n"')
    lost, refused = read_operations(calls, {"r": {"status": "running"}}, {})["r"][:2]
    assert (lost.answer, lost.fence, lost.worker) == (Lost.LOST, 7, "w")
    assert refused.must_happen
    assert [call.is_lost for call in read_calls(calls)] == [True, False]


def test_fence_that_no_answer_gave_is_that_of_a_lost_claim(tmp_path: Path) -> None:
    calls = tmp_path / "calls.jsonl"
    lines = [
        {"by": "dispatcher-1", "n": 0, "at": 1.0, "verb": "claim", "asked": []},
        {"by": "worker-1", "n": 0, "at": 2.0, "verb": "begin", "asked": [["r", 7]], "worker_id": "w", "lease": 4},
    ]
    calls.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    operations = read_operations(calls, {"r": {"status": "pending"}}, {})["r"]
    assert [each.fence for each in operations if each.verb is Verb.CLAIM] == [7]
